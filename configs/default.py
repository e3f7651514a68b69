"""Every field of a run, declared once; the other configs override. A field that is not here is an error."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # initial weights and the order of the data

    config.data = data = ConfigDict()
    data.name = ""  # a MedMNIST flag, such as "vesselmnist3d", or "lidcshapes3d"
    data.root = ""  # folder of the data files; empty: MEDMNIST_ROOT, else ~/.medmnist
    data.size = 28  # pixels a side of the stored images: 28, 64, 128, 224 (2D); 28, 64 (3D)

    config.model = model = ConfigDict()
    model.backbone = ""  # a key of jaxboost.models.classifier.BACKBONES
    model.image_size = 28  # pixels a side of what the encoder sees; 2D images are resized to it, bicubic
    model.mean = (0.0,)  # pixels in [0, 1] become (pixel - mean) / std, a value for all channels or one for each
    model.std = (1.0,)
    model.dtype = "float32"  # of the computation, "float32" or "bfloat16"; trained weights stay float32
    model.remat = False  # keep only the input of each encoder block for the backward pass: less memory, more time

    config.boost = boost = ConfigDict()
    boost.kind = "rllm"  # none, rllm, out, hybrid, bare, out_nn, mlp, mlp_out
    boost.family = "llama-7b"  # shapes that the block must have; empty: whatever the block has
    boost.block = ""  # folder made by convert_weights.py, or "random": a frozen random block, the control
    boost.source = ""  # where that block comes from: named in the error when it is missing
    boost.convert = False  # make a missing block from boost.source at the start of the run
    boost.layers = (31,)  # layers of the LLaMA model, in the order in which they run; (): all that the block holds
    boost.final_norm = "ones"  # weight of the RMSNorm after the last layer: "ones" (the reference) or "loaded"
    boost.trainable = False  # train the block too: the paper's FT arm
    boost.rope = False  # keep LLaMA's rotary embedding
    boost.path = "auto"  # to the same result: "full", "pooled" (CLS alone), "absorbed" (no keys, no values)
    boost.causal = False  # keep LLaMA's causal mask; CLS comes first and then sees only itself

    config.optim = optim = ConfigDict()
    optim.name = "adamw"  # or "adam"
    optim.lr = 1e-5  # peak, per step of the optimiser
    optim.schedule = "cosine"  # to optim.final_lr over all epochs, or "constant"
    optim.warmup_epochs = 0.0  # linear, from 0; a fraction is fine
    optim.final_lr = 0.0  # the cosine's last value
    optim.weight_decay = 0.05  # adamw only; none on biases, norms, positions and CLS tokens
    optim.b1 = 0.9  # decay of the gradient's mean
    optim.b2 = 0.999  # decay of the mean of its square
    optim.eps = 1e-8  # added to the root of the latter
    optim.clip_norm = 0.0  # global gradient norm; 0: no clipping

    config.train = train = ConfigDict()
    train.epochs = 100  # whole passes; what does not fill a batch is left out, another part in each
    train.batch_size = 128  # over all devices
    train.max_steps = 0  # end the run early, after this many steps, without touching the schedule; 0: do not
    train.log_every = 10  # steps
    train.compilation_cache = True  # keep compiled programs in the user's cache folder for the next start
    train.checkpoint_every = 0  # steps; 0: at the end of each epoch only

    config.eval = evaluation = ConfigDict()
    evaluation.protocol = "validation"  # the split that picks the epoch; "reference": test, as the paper's code does
    evaluation.metric = "auc"  # that picks the epoch: "auc" or "acc"
    evaluation.batch_size = 128  # over all devices
    evaluation.bootstrap = 1000  # resamples for the 95 % intervals
    return config.lock()
