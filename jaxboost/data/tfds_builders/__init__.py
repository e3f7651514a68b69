"""TFDS builders of the 18 MedMNIST data sets and of the LIDC nodule shapes, so that other projects can read them.

    python -m jaxboost.data.tfds_builders --name medmnist/breastmnist --data_dir FOLDER

prepares one (`medmnist/FLAG`, `medmnist/FLAG_SIZE` or `lidc_shapes`) in the folder. Then any project with the package
tensorflow-datasets can read it, without this package and without TensorFlow:

    tensorflow_datasets.data_source("medmnist/breastmnist", data_dir="FOLDER")

Writing needs no TensorFlow either: the files are array_record, and pillow encodes the images. The command `tfds build`
of tensorflow-datasets does not start without TensorFlow, so it cannot be used here.
"""
