"""Training data in the devices' memory: the host sends row numbers, and a step reads, resizes and augments the images.

`rows` holds a split and reads rows of it. `images` makes the model's input of stored images, with the operations of
`resample`, `pictures`, `rand_augment` and `volumes`. They do what jaxboost/data/pipeline does on the host, in the same
order, with the same distributions; the random numbers themselves are others.

Functions of one image take uint8 (S, S, C) or (S, S, S, C) and return uint8. Random choices are arguments of these
functions, drawn from a key by functions named `draw`, so that tests can compare equal choices with the host.
"""
