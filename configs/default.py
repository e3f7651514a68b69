"""Every field of a run, declared once; the other configs override. A field that is not here is an error.

`get_config` has the fields of R-LLM, `get_pneumollm_config` those of PneumoLLM: what both have is the same.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = _shared()
    config.model.weights = ""  # the 2-D encoder's: folder made by convert_weights.py; "" or "random": a random start
    config.model.weights_source = ""  # where they come from: named in the error when they are missing
    config.model.weights_convert = False  # make them from there at the start of the run
    config.model.frozen = False  # do not train the encoder and its final norm; weights is then given, or "random"
    config.model.drop_path = 0.0  # share of examples that skip a branch of the encoder's last block; less below it

    config.boost = boost = ConfigDict()
    boost.kind = "rllm"  # none, rllm, out, hybrid, bare, out_nn, mlp, mlp_out
    _llama_fields(boost)
    boost.trainable = False  # train the block too: the paper's FT arm
    boost.rope = False  # keep LLaMA's rotary embedding
    boost.path = "auto"  # to the same result: "full", "pooled" (CLS alone), "absorbed" (no keys, no values)
    # Adapters' first weights: "uniform", U(+-1 / sqrt(fan_in)), as the 3D code; "normal", N(0, .02), as the 2D code.
    boost.init = "uniform"
    boost.causal = False  # keep LLaMA's causal mask; CLS comes first and then sees only itself
    return config.lock()


def get_pneumollm_config() -> ConfigDict:
    config = _shared()
    config.pneumollm = pneumollm = ConfigDict()
    # With model.backbone="conv14" the encoder is trained: the next five do nothing.
    pneumollm.vision = ""  # the encoder's weights: folder made by convert_weights.py, or "random": the control
    pneumollm.vision_source = ""  # where they come from: named in the error when they are missing
    pneumollm.vision_convert = False  # make them from there at the start of the run
    pneumollm.every = 4  # source tokens: the CLS token after every so many blocks of the encoder
    pneumollm.vision_adapters = True  # RepAdapters in the encoder's blocks; without, images are encoded only once
    pneumollm.llama_adapters = True  # RepAdapters in LLaMA's layers
    pneumollm.tokens = "engine"  # diagnosis tokens: none, coop, cocoop, engine
    pneumollm.count = 4  # how many of them, where there are any
    pneumollm.emitter = True  # the information emitter mask: no token sees the diagnosis tokens

    config.llama = llama = ConfigDict()
    llama.used = True  # False: the neck's tokens go to the head (Table 4); of the rest only family is read then
    _llama_fields(llama)
    llama.final_norm = "loaded"
    llama.causal = False  # keep LLaMA's causal mask, which PneumoLLM replaces by the emitter's
    llama.remat = False  # keep only the input of each layer for the backward pass: less memory, more time
    llama.shard = False  # spread its matrices over the devices instead of copying them to each
    llama.weights = "stored"  # hold its matrices as the block has them, or rounded to "int8" as they are loaded
    return config.lock()


def _llama_fields(section: ConfigDict) -> None:
    section.family = "llama-7b"  # shapes where no block is read: of random layers, and to describe a missing block
    section.block = ""  # folder made by convert_weights.py, or "random": a frozen random block, the control
    section.source = ""  # where that block comes from: named in the error when it is missing
    section.convert = False  # make a missing block from the source at the start of the run
    # Layers of the LLaMA model, in the order in which they run. (): all that the block holds. Where no block is read,
    # or a missing one is converted, () is the last layer for `boost`, and all layers for `llama`.
    section.layers = ()
    section.final_norm = "ones"  # weight of the RMSNorm after the last layer: "ones" or "loaded"


def _shared() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # initial weights and the order of the data

    config.data = data = ConfigDict()
    # "": the published set that data.name names; "folder": files of your own in data.root; "tfds:NAME": a prepared set
    # of tensorflow-datasets in data.root (empty: its own default), whatever data.name is.
    data.source = ""
    data.name = ""  # a MedMNIST flag, such as "vesselmnist3d", or "lidcshapes3d", "lidcsilhouettes"; of a folder: any
    data.root = ""  # folder of the data files; empty: MEDMNIST_ROOT, else ~/.medmnist
    data.size = 28  # pixels a side of the images: 28, 64, 128, 224 (2D); 28, 64 (3D); of a folder: any, resampled to it
    # Of a folder alone.
    data.classes = ()  # in label order, as "normal,sick"; (): those found, sorted
    data.multi_label = False  # several labels of an image, separated by |, or none
    data.allow_mixed_patients = False  # images of one patient may have different labels
    data.masks = ""  # of the lungs, 2D: a folder of PNG files, or a CSV file in CheXmask's form; empty: no crop
    data.window = ()  # (low, high), stored values (2D: not of 8 bits) that become 0 and 255; (): the file's own range
    data.spacing = 0.0  # mm a voxel of the model's grid; 0: each volume's longest physical side fills the grid
    data.nan = (
        ""  # a number, such as "0", that replaces NaN and infinite values; "": files with such values are refused
    )
    data.max_pixels = 2**26  # an image file with more pixels is refused before it is decoded
    data.max_voxels = 2**29  # a volume file with more voxels is refused before it is read
    data.patient = ""  # "tag": DICOM tags name the patients where neither labels.csv nor folders do; "": they do not
    # Nearly equal images of different patients in different splits: "warn", "join" (make them one patient), "refuse".
    data.duplicates = "warn"
    # Train, val, test, by patient, where the data have no splits and data.folds is 0. Where they have train and test
    # alone, a part of train becomes val, in the proportion of their shares.
    data.shares = (0.7, 0.1, 0.2)
    # Of every data set; the seed also of data.shares.
    data.folds = 0  # of a cross-validation, by patient; 0: splits of the data's own, or data.shares
    data.fold = -1  # run this fold alone, from 0; -1: all, one after the other
    data.fold_seed = 0  # of the assignment of patients to folds
    data.val_share = 0.2  # of a fold's training part, by patient, which picks the epoch
    data.folds_file = ""  # folds to use, a CSV file as a run writes it; empty: made, and written to the run

    config.model = model = ConfigDict()
    model.backbone = ""  # a key of jaxboost.models.backbones.BACKBONES
    model.image_size = 28  # pixels a side of what the encoder sees; 2D images are resized to it, bicubic
    model.mean = (0.0,)  # pixels in [0, 1] become (pixel - mean) / std, a value for all channels or one for each
    model.std = (1.0,)
    model.dtype = "float32"  # of the computation, "float32" or "bfloat16"; trained weights stay float32
    model.remat = False  # keep only the input of each encoder block for the backward pass: less memory, more time

    config.augment = augment = ConfigDict()  # random changes of training images; by default none
    # Of 2D images. The first is of evaluation too: it is not random.
    augment.resize = 0  # pixels, bicubic, before a centre crop to model.image_size; 0: resized straight to the latter
    augment.crop_scale = ()  # of a random crop instead, in training: (low, high) share of the area; (): none
    augment.crop_ratio = (3 / 4, 4 / 3)  # of the random crop: (low, high) width / height
    augment.interpolation = "bicubic"  # of random crops and RandAugment, or "random": bicubic or bilinear
    augment.flip = 0.0  # probability, left to right: leave it at 0 where left and right mean something
    augment.vertical_flip = 0.0  # probability, upside down
    augment.color_jitter = 0.0  # x: brightness, contrast and saturation times U(1 - x, 1 + x), at most 1
    augment.rand_augment_ops = 0  # RandAugment: operations per image; timm's n
    augment.rand_augment_magnitude = 9.0  # mean of their level, 0 to 10; timm's m
    augment.rand_augment_std = 0.5  # standard deviation of their level; timm's mstd
    augment.rand_augment_increasing = False  # all of them change the more, the higher the level; timm's inc1
    augment.rgb = False  # turn grey training images into RGB first: what fills borders or erased parts has colour then
    # Of volumes:
    augment.volume_flips = False  # along each axis, half of the time
    augment.volume_rotations = False  # by multiples of 90 degrees: each of the 24 orientations as often
    augment.shift = 0  # voxels at most, along each axis; 0 comes in from outside
    augment.noise = 0.0  # standard deviation of normal noise, the grey values being 0 to 1
    # Of both:
    augment.repeats = 1  # samples of an image in an epoch, which then sees 1 / repeats of the images

    config.mix = mix = ConfigDict()  # what a step does to its batch
    mix.mixup = 0.0  # alpha: a batch's weight is Beta(alpha, alpha); 0: none
    mix.cutmix = 0.0  # alpha, likewise of the area that stays
    mix.switch = 0.5  # probability of cutmix where both are there
    mix.prob = 1.0  # that a batch is mixed at all
    mix.erase = 0.0  # probability that a rectangle of a 2-D image becomes noise
    mix.label_smoothing = 0.0  # share of a label that is spread evenly over all classes

    config.optim = optim = ConfigDict()
    optim.name = "adamw"  # or "adam"
    optim.lr = 1e-5  # peak, per step of the optimiser
    optim.schedule = "cosine"  # to optim.final_lr over all epochs, "constant", or "steps": a tenth at 1/2 and at 3/4
    optim.warmup_epochs = 0.0  # linear; a fraction is fine
    optim.warmup_from = 0.0  # the warm-up's first value
    optim.final_lr = 0.0  # the cosine's last value
    optim.schedule_epochs = 0.0  # of warm-up and cosine together; 0: train.epochs
    optim.schedule_from = 0.0  # epochs of it that are over when the run starts
    # One rate for each whole epoch: the schedule's at the start of the epoch before; the first epoch has warmup_from.
    optim.by_epoch = False
    optim.layer_decay = 1.0  # each encoder block's rate is this times that of the block above it; 1: all the same
    optim.weight_decay = 0.05  # adamw only; none on biases, norms, positions and CLS tokens
    optim.b1 = 0.9  # decay of the gradient's mean
    optim.b2 = 0.999  # decay of the mean of its square
    optim.eps = 1e-8  # added to the root of the latter
    optim.clip_norm = 0.0  # global gradient norm; 0: no clipping

    config.train = train = ConfigDict()
    train.epochs = 100  # passes over the training split
    train.batch_size = 128  # over all devices
    # Samples that do not fill a batch at the end of an epoch: "drop" (other ones in each epoch), or "keep" (a smaller
    # batch).
    train.last_batch = "drop"
    train.epoch_multiple = 0  # the samples of an epoch are rounded down to a multiple of this; 0: all are used
    train.accumulate = 1  # steps whose mean gradient makes one change of the weights; the run's last may lack some
    train.sampling = "uniform"  # or "balanced": as many samples of each class in an epoch
    train.loss = "auto"  # the task's own, or "columns": binary cross-entropy on each column of the one-hot label
    train.class_weights = ""  # in the loss: "balanced", a number for each class as "1,2.5", or none
    train.ema = 0.0  # decay, per change, of an average of the weights; 0: none
    train.max_steps = 0  # end the run early, after this many steps, without touching the schedule; 0: do not
    train.log_every = 10  # steps
    train.compilation_cache = True  # keep compiled programs in the user's cache folder for the next start
    train.checkpoint_every = 0  # steps; 0: at the end of each epoch only

    config.eval = evaluation = ConfigDict()
    evaluation.protocol = "validation"  # the split that picks the epoch; "reference": test, as the paper's code does
    evaluation.metric = "auc"  # that picks the epoch: "auc", "acc", or "avg": mean of both, sensitivity, specificity
    evaluation.ties = "earlier"  # which of two epochs with the same metric is picked: "earlier" or "later"
    evaluation.ema = True  # evaluate the average of the weights, where train.ema keeps one, and not the weights
    evaluation.specificity = 0.0  # binary: report the threshold that validation has for this much; 0: .5 alone
    evaluation.batch_size = 128  # over all devices
    evaluation.bootstrap = 1000  # resamples for the 95 % intervals
    return config
