"""Prints parameters, memory, tokens and FLOPs of a config's model. Needs neither weights nor data on disk.

jaxboost describe --config quickstart [--config.section.field=value ...] [--json] [--nomemory]
"""

import json

from absl import flags

from jaxboost.cli import app, config_flag


def run() -> None:
    """The command `jaxboost describe`."""
    config = config_flag.define()
    json_flag = flags.DEFINE_bool("json", False, "print one JSON object instead of text")
    memory_flag = flags.DEFINE_bool("memory", True, "compile a training step to estimate its memory")

    def main() -> None:
        fields = config_flag.read(config)
        from jaxboost.analysis import describe

        result = describe.describe(fields, memory=memory_flag.value)
        print(json.dumps(result) if json_flag.value else describe.as_text(result))

    app.run(main, description=__doc__)
