"""The flag --resume of the experiments that go on with a run."""

from typing import Any

from absl import flags

from rnn_jax.training.resume import Resume

flags.disclaim_key_flags()  # the flag belongs to the experiment that defines it


class _ResumeParser(flags.ArgumentParser):
    """Takes what a boolean flag takes, and "force"."""

    syntactic_help = "true, false or force"

    def parse(self, argument: Any) -> Resume:
        """Returns True, False or "force".

        Raises:
          ValueError: the argument is none of them.
        """
        if isinstance(argument, bool) or argument == "force":
            return argument
        values = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
        if str(argument).lower() not in values:
            raise ValueError(f"allowed: {self.syntactic_help}")
        return values[str(argument).lower()]

    def flag_type(self) -> str:
        return "bool or force"


def define_resume_flag(flag_values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
    """Makes the flag: --resume, --resume=true, --noresume or --resume=force; its value is True, False or "force"."""
    flag: flags.Flag = flags.Flag(
        _ResumeParser(),
        flags.ArgumentSerializer(),
        "resume",
        False,
        "Go on with the run in --out; the other flags must be what they were. --resume=force goes on also where the"
        " source of a cell has changed.",
        boolean=True,
    )
    return flags.DEFINE_flag(flag, flag_values)
