"""Sources of data sets: MedMNIST, LIDC shapes, a user's folder, tensorflow-datasets."""
