"""Converts CLIP's text encoder with prompts for the classes of a task.

The text encoder runs here, once, with transformers' tokenizer and model: a run needs neither.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jaxboost
from jaxboost import io, outputs
from jaxboost.convert import manifests, part_file, tokenizers, writer
from jaxboost.convert.formats import places
from jaxboost.convert.formats.huggingface import FILES, OPEN_CLIP_FILES, Folder, HuggingFaceTensors, LocalFolder
from jaxboost.convert.manifest_types import ClassText, TextManifest
from jaxboost.convert.part_file import DTYPES
from jaxboost.convert.prompts import Prompts, parse, read
from jaxboost.convert.tables import shapes, text, vit, vit_configs
from jaxboost.convert.tables.parts import NORM, Part
from jaxboost.convert.tables.vit import VitSource
from jaxboost.errors import UserError


def convert_text(
    source: str | os.PathLike[str],
    prompts: str | os.PathLike[str] | Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> TextManifest:
    """Converts the text encoder of a CLIP, and what it makes of class prompts.

    The embedding of a class is the mean of its prompts' embeddings, each divided by its length, and is then divided by
    its own length, as CLIP's authors ensemble prompts (Radford et al. 2021, section 3.1.4).

    Example:
      >>> prompts = {"normal": ["a normal chest X-ray"], "pneumonia": ["a chest X-ray with pneumonia"]}
      >>> convert_text("openai/clip-vit-base-patch32", prompts, "blocks/clip-vit-b32-text")

    Args:
      source: a CLIP with both towers and its tokenizer, in Hugging Face's layout: a folder, or the id of a repository
        on the hub (owner/name[@revision]).
      prompts: class name -> its prompts, or {"prompts": [...], "called": text behind CoOp's context}, which is the
        class name by default; or the path of a JSON file that says so.
      out: folder of the result; it appears only when it is complete.
      overwrite: whether an existing converted folder may be replaced.

    Returns:
      The manifest of the result.

    Raises:
      UserError: the source is no such CLIP; the prompts have another form, or are too long for it; or `out` exists.
    """
    source, out = os.fspath(source), io.user_path(out)
    writer.check_free(out, overwrite=overwrite)
    if os.path.isdir(io.user_path(source)) and outputs.is_inside(out, io.user_path(source)):
        raise UserError(f"--out {out} lies in --source {source}: give a folder elsewhere")
    of_classes = parse(prompts, "the prompts") if isinstance(prompts, Mapping) else read(io.user_path(prompts))
    try:
        tensors, tokenizer = _opened(source)
    except OSError as error:
        raise UserError(f"{error.filename or source} cannot be read: {error.strerror or error}") from error
    text.check_both_towers(tensors)
    arguments, settings = text.parse_text(tensors)
    vision = vit_configs.encoder_of(tensors)
    vision.select("all", final_norm=True)
    vision_width, vocabulary = vision.arguments["width"], settings.integer("vocab_size")
    text.check(tensors, arguments, vocabulary=vocabulary, vision_width=vision_width)
    tokens = _Tokens(tokenizer, arguments["context"], vocabulary, settings.get("eos_token_id"), tensors.source)
    arrays, classes = _computed(tensors, arguments, of_classes, tokens)
    of_parts = shapes.class_parts(
        arguments, classes=len(classes), tokens=arrays["names"].shape[1], vision_width=vision_width
    )
    own = [
        Part(key=key, shapes=of_part, read=lambda name, dtype: np.asarray(arrays[name], dtype))
        for key, of_part in of_parts.items()
    ]
    with writer.writing(out, overwrite=overwrite) as folder:
        for each in (*own, *text.parts(tensors, arguments)):
            folder.add(each, DTYPES["float32"], lambda _: None)
        manifest = TextManifest(
            source=tensors.source,
            source_format=tensors.source_format,
            arguments=arguments,
            classes=classes,
            vision_width=vision_width,
            vision_norm={dtype: _norm_of(vision, dtype) for dtype in DTYPES},
            sha256=folder.sha256,
            jaxboost_version=jaxboost.__version__,
        )
        manifests.check(manifest)
        folder.finish(manifest)
    return manifest


def summary(manifest: TextManifest, out: str | os.PathLike[str]) -> str:
    """A few lines for the user: what was converted, where it is, and how it is used."""
    counts = ", ".join(f"{each.name} ({len(each.prompts)})" for each in manifest.classes)
    return "\n".join(
        [
            f"source   {manifest.source} ({manifest.source_format})",
            f"classes  {counts}: the number of prompts",
            f"width    {manifest.arguments['embedding_width']} of the embeddings of texts and images",
            f"wrote    {out}",
            f"use it   --config.baseline.text={out}, or --config.clip.text={out}",
        ]
    )


class _Tokens:
    """Texts as token numbers."""

    def __init__(self, tokenizer: Any, context: int, vocabulary: int, end: Any, source: str):
        """Takes transformers' tokenizer, and what config.json says of the text encoder."""
        self._tokenizer, self._context, self.end = tokenizer, context, tokenizer.eos_token_id
        self.first = tokenizer.bos_token_id
        # Early files say 2 in the place of the end's number, and transformers then takes the highest number.
        end = vocabulary - 1 if end in (None, 2) else end
        if max(len(tokenizer), self.end + 1) > vocabulary or end != self.end:
            raise UserError(
                f"{source}: the tokenizer's {len(tokenizer)} tokens, with the end {self.end}, are not those of the text"
                f" encoder, {vocabulary} with the end {end}: download both again from one place"
            )

    def __call__(self, given: str) -> list[int]:
        """The token numbers of a text, from its start to its end.

        Raises:
          UserError: they are too many, or a word in the text is the name of a special token.
        """
        found = self._tokenizer(given)["input_ids"]
        if len(found) > self._context:
            raise UserError(
                f"the text {given!r:.60} has {len(found)} tokens, more than the text encoder's {self._context}: make it"
                " shorter"
            )
        if found[0] != self.first or self.first in found[1:] or found.index(self.end) != len(found) - 1:
            raise UserError(f"the text {given!r:.60} has a special or unknown token among its words: write it without")
        return found


def _computed(
    tensors: HuggingFaceTensors, arguments: Mapping[str, Any], of_classes: Mapping[str, Prompts], tokens: _Tokens
) -> tuple[dict[str, np.ndarray], tuple[ClassText, ...]]:
    """The arrays of the parts of `shapes.class_parts`, and the classes of the manifest."""
    prompts = [[tokens(one) for one in each.prompts] for each in of_classes.values()]
    # CoOp's code has a full stop behind the name too.
    names = [tokens(f"{each.called}.") for each in of_classes.values()]
    embed, table = _text_encoder(tensors, arguments, tokens)
    embeddings = []
    for name, texts in zip(of_classes, prompts, strict=True):
        mean = np.mean([_unit(embed(one)) for one in texts], axis=0)
        if not np.linalg.norm(mean) > 1e-6:
            raise UserError(f"the prompts of class {name!r} cancel each other out: give others")
        embeddings.append(_unit(mean))
    longest = max(map(len, names))
    padded = np.zeros((len(names), longest, arguments["width"]), np.float32)
    for row, numbers in zip(padded, names, strict=True):
        row[: len(numbers)] = table[numbers]
    arrays = {
        "embeddings": np.stack(embeddings),
        "names": padded,
        "projection": tensors.read(text.VISION_PROJECTION).T,
        "scale": np.exp(np.asarray(tensors.read(text.SCALE), np.float64)).reshape(1),
    }
    return arrays, tuple(
        ClassText(name=name, prompts=each.prompts, called=each.called, end=len(numbers) - 1)
        for (name, each), numbers in zip(of_classes.items(), names, strict=True)
    )


def _text_encoder(tensors: HuggingFaceTensors, arguments: Mapping[str, Any], tokens: _Tokens) -> tuple[Any, np.ndarray]:
    """The text encoder of transformers as a function, token numbers -> embedding (D,), and its token embeddings."""
    torch, transformers = _import()
    state = text.state_for_transformers(tensors, arguments)
    config = transformers.CLIPTextConfig(
        vocab_size=len(state[text.TOKENS]),
        hidden_size=arguments["width"],
        intermediate_size=arguments["mlp_width"],
        projection_dim=arguments["embedding_width"],
        num_hidden_layers=arguments["depth"],
        num_attention_heads=arguments["heads"],
        max_position_embeddings=arguments["context"],
        hidden_act=arguments["activation"],
        layer_norm_eps=arguments["eps"],
        bos_token_id=tokens.first,
        eos_token_id=tokens.end,
        pad_token_id=tokens.end,
    )
    model = transformers.CLIPTextModelWithProjection(config).eval()
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})

    def embed(numbers: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([numbers])).text_embeds[0].double().numpy()

    return embed, state[text.TOKENS]


def _of_folder(folder: Folder) -> HuggingFaceTensors:
    if FILES.config not in folder.files and OPEN_CLIP_FILES.config in folder.files:
        raise UserError(
            f"{folder.source} is a CLIP in OpenCLIP's layout, of which the tower of images alone is read"
            " (--layers all): for prompts pass a CLIP in Hugging Face's layout, such as openai/clip-vit-base-patch32"
        )
    tensors = HuggingFaceTensors(folder)
    text.check_both_towers(tensors)
    return tensors


def _opened(source: str) -> tuple[HuggingFaceTensors, Any]:
    """The checkpoint and its tokenizer."""
    path = io.user_path(source)
    if source and os.path.isdir(path):
        tensors = _of_folder(LocalFolder(path))
        return tensors, _tokenizer(str(path))
    places.check_repository_id(source, "source")
    # Imported late: see `sources`.
    from jaxboost.convert.formats.hub import HubFolder

    tensors = _of_folder(HubFolder(source))
    name, _, commit = tensors.source.partition("@")
    return tensors, _tokenizer(name, revision=commit)


def _tokenizer(where: str, **options: str) -> Any:
    _, transformers = _import()
    files = "vocab.json and merges.txt, or tokenizer.json"
    return tokenizers.load(transformers.CLIPTokenizer, where, files, **options)


def _import() -> tuple[Any, Any]:
    """The modules torch and transformers. Raises UserError if they are not installed."""
    return tokenizers.import_transformers("the text encoder")


def _norm_of(vision: VitSource, dtype: str) -> str:
    """The fingerprint of the vision encoder's final LayerNorm as `conversion.convert` stores it."""
    names = vision.shapes[NORM]
    return part_file.fingerprint({name: vit.read_weight(vision, NORM, name, DTYPES[dtype]) for name in names})


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
