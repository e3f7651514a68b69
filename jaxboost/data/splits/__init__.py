"""Training, validation and test: by patient, stratified, without leaks."""
