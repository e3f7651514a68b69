"""Training, validation and test splits: by patient, stratified, without leaks."""
