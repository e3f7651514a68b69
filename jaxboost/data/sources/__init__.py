"""Where a data set comes from: MedMNIST, LIDC shapes, a user's folder, tensorflow-datasets."""
