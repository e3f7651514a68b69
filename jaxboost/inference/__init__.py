"""What a finished run is used for: prediction and export."""
