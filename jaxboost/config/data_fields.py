"""The fields of the sections `data`, `augment` and `mix`: images, splits and augmentation."""

from collections.abc import Iterable

from jaxboost.config.fields import MAX_SIDE, PROBABILITY, Field, Range


def _filters() -> Iterable[str]:
    from jaxboost.data.pipeline.augment import FILTERS

    return FILTERS


def _caches() -> Iterable[str]:
    from jaxboost.data.rows.place import MODES

    return MODES


DATA = {
    "source": Field(
        "",
        'where the images come from: "": the published data set `data.name`; "folder": your own files in `data.root`;'
        ' "tfds:NAME": a prepared set of tensorflow-datasets in `data.root` (empty: its default folder)',
    ),
    "name": Field(
        "",
        'published data set: a MedMNIST flag such as "vesselmnist3d", or "lidcshapes3d", "lidcsilhouettes"; with'
        ' source "folder": any name; with "tfds:NAME": not read',
    ),
    "root": Field("", "folder of the data files; empty: $MEDMNIST_ROOT, else ~/.medmnist", resume="free"),
    "size": Field(
        28,
        "side of the stored images: 28, 64, 128 or 224 (published, 2D), 28 or 64 (published, 3D); a folder's images"
        " are resampled to it",
        unit="pixels",
        range=Range(above=0, most=MAX_SIDE),
    ),
    "classes": Field((), "folder: class names in label order, such as normal,sick; (): those found, sorted"),
    "multi_label": Field(False, "folder: an image has any number of labels, separated by |"),
    "allow_mixed_patients": Field(False, "folder: images of one patient may have different labels"),
    "masks": Field(
        "",
        "folder, 2D: lung masks to crop to: a folder of PNG files, or a CSV file in CheXmask's format; empty: no crop",
        resume="given",
    ),
    "window": Field(
        (),
        "folder: (low, high), the stored values that become 0 and 255 (2D: of images with more than 8 bits); (): each"
        " file's own range",
    ),
    "spacing": Field(
        0.0,
        "folder, 3D: voxel spacing of the model's grid; 0: each volume's longest physical side fills the grid",
        unit="mm",
        range=Range(least=0, most=1000),
    ),
    "nan": Field(
        "",
        'folder: a number, such as "0", that replaces NaN and infinite values; "": files with such values are refused',
        before="",
    ),
    "max_pixels": Field(
        2**26,
        "folder, 2D: largest image; larger files are refused before they are decoded",
        unit="pixels",
        range=Range(above=0, most=2**40),
        resume="free",
        before=2**26,
    ),
    "max_voxels": Field(
        2**29,
        "folder, 3D: largest volume; larger files are refused before they are read",
        unit="voxels",
        range=Range(above=0, most=2**40),
        resume="free",
        before=2**29,
    ),
    "patient": Field(
        "",
        'folder: "tag": DICOM tags identify the patients if neither labels.csv nor folders do; "": tags are not read',
        choices=("tag",),
        optional=True,
        before="",
    ),
    "duplicates": Field(
        "warn",
        'folder: near-duplicate images of different patients in different splits: "warn", "join" (treat them as one'
        ' patient) or "refuse"',
        choices=("warn", "join", "refuse"),
        before="warn",
    ),
    "on_device": Field(
        "auto",
        "the splits are in the memory of the devices, which also resize and augment the images, with other random"
        ' numbers than the host: "true", "false", or "auto": if they fit into 40 % of the memory of an accelerator',
        choices=("auto", "true", "false"),
        resume="auto",
        before="false",
    ),
    "cache": Field(
        "on",
        'decoded images of a folder or a prepared set: "on": kept in $JAXBOOST_CACHE (empty: the user\'s cache folder)'
        ' for the next start; "renew": read again and kept; "off": in memory alone',
        choices=_caches,
        resume="free",
        before="on",
    ),
    "cache_gb": Field(
        20.0,
        "most disk space for the decoded images of all data sets; those that were not used for longest are removed",
        unit="GB",
        range=Range(least=0, most=1e6),
        resume="free",
        before=20.0,
    ),
    "groups": Field(
        "",
        "published and prepared sets: CSV file with the columns file (`train/0`, `val/3`, ...) and patient_id, which"
        " names the patients, and those of data.columns; empty: as the data set knows them",
        resume="given",
        before="",
    ),
    "columns": Field(
        (),
        "clinical columns of labels.csv, or of the table data.groups, that the classifier reads beside the image, as in"
        " age,sex; sex:category if its numbers are codes of categories",
        before=(),
    ),
    "shares": Field(
        (0.7, 0.1, 0.2),
        "split ratios of train, val and test, by patient, for data without splits, if data.folds is 0; data with only"
        " train and test: a part of train becomes val, in the ratio of train and val",
    ),
    "train_fraction": Field(
        1.0,
        "fraction of the training patients that are kept, for learning curves: drawn with `seed` in each class, a"
        " smaller part inside a larger one",
        range=Range(above=0, most=1),
        before=1.0,
    ),
    "folds": Field(
        0,
        "folds of a cross-validation by patient; 0: the data's own splits, or data.shares",
        range=Range(least=0, most=1000),
    ),
    "fold": Field(-1, "the one fold to run, from 0; -1: all, one after the other"),
    "fold_seed": Field(
        0,
        "random seed of the assignment of patients to folds, and to the splits of data.shares",
        range=Range(least=0, below=2**32),
    ),
    "val_share": Field(0.2, "validation ratio of a fold's training part, by patient; validation picks the epoch"),
    "folds_file": Field(
        "",
        "CSV file of the folds, in the format that a run writes; empty: the run draws folds and keeps them",
        resume="given",
    ),
}

_LEVEL = Range(least=0, most=10, words="0 to 10")  # rand_augment.HIGHEST
AUGMENT = {
    # For 2D images. `resize` is not random and is also applied in evaluation.
    "resize": Field(
        0,
        "2D: bicubic resize before a centre crop to model.image_size; 0: images are resized straight to"
        " model.image_size",
        unit="pixels",
        range=Range(least=0, most=MAX_SIDE),
    ),
    "crop_scale": Field((), "2D: random resized crop: (low, high) fraction of the area; (): no random crop"),
    "crop_ratio": Field((3 / 4, 4 / 3), "2D: random resized crop: (low, high) aspect ratio, width / height"),
    "interpolation": Field(
        "bicubic",
        'of random crops and RandAugment: "bicubic", or "random": bicubic or bilinear, each half of the time',
        choices=_filters,
    ),
    "flip": Field(
        0.0,
        "2D: probability of a left-right flip; leave it at 0 if left and right matter",
        range=PROBABILITY,
    ),
    "vertical_flip": Field(0.0, "2D: probability of an upside-down flip", range=PROBABILITY),
    "color_jitter": Field(
        0.0, "2D: strength x: brightness, contrast and saturation times U(1 - x, 1 + x)", range=PROBABILITY
    ),
    "rand_augment_ops": Field(
        0, "2D: RandAugment: operations per image (timm's n); 0: no RandAugment", range=Range(least=0)
    ),
    "rand_augment_magnitude": Field(
        9.0, "2D: RandAugment: mean level of the operations, 0 to 10 (timm's m)", range=_LEVEL
    ),
    "rand_augment_std": Field(
        0.5, "2D: RandAugment: standard deviation of the level, 0 to 10 (timm's mstd)", range=_LEVEL
    ),
    "rand_augment_increasing": Field(
        False, "2D: RandAugment: every operation gets stronger as the level increases (timm's inc1)"
    ),
    "rgb": Field(
        False,
        "2D: convert grey training images to RGB first, so that filled borders and erased regions have colour",
        before=False,
    ),
    "volume_flips": Field(False, "3D: flip along each axis with probability 1/2"),
    "volume_rotations": Field(False, "3D: rotate by multiples of 90 degrees; the 24 orientations are equally likely"),
    "shift": Field(
        0, "3D: largest translation along each axis; zeros are filled in", unit="voxels", range=Range(least=0)
    ),
    "noise": Field(0.0, "3D: standard deviation of Gaussian noise, with grey values from 0 to 1", range=PROBABILITY),
    "repeats": Field(
        1,
        "repeated augmentation: draws per image per epoch; an epoch keeps its length",
        range=Range(least=1, most=10**6),
    ),
}

MIX = {
    "mixup": Field(
        0.0,
        "mixup: alpha of Beta(alpha, alpha), from which a batch's weight is drawn; 0: off",
        range=Range(least=0, most=1e6),
    ),
    "cutmix": Field(
        0.0,
        "cutmix: alpha of Beta(alpha, alpha) for the fraction of the area that stays; 0: off",
        range=Range(least=0, most=1e6),
    ),
    "switch": Field(0.5, "probability of cutmix if mixup and cutmix are both on", range=PROBABILITY),
    "prob": Field(1.0, "probability that a batch is mixed", range=PROBABILITY),
    "erase": Field(0.0, "2D: random erasing: probability that a rectangle becomes noise", range=PROBABILITY),
    "label_smoothing": Field(
        0.0,
        "label smoothing: fraction of the label that is spread evenly over all classes",
        range=Range(least=0, below=1, words="0 to below 1"),
    ),
}
