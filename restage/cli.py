"""The command line: turns arguments into configs with tyro, shows progress, and turns errors into one line.

A sub-command is a function in `restage/commands`. Only the one that was asked for is built, and it imports what is
heavy itself, so that `restage --help` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from restage.records import InputError, is_disk_full, system_error
from restage.run.environment import choose_kernel_cache
from restage.run.progress import PrintableStream, is_stop_requested, printable, say, stop_on_signals

__all__ = ["main"]

EXIT_BAD_INPUT = 2
EXIT_DISK_FULL = 3
EXIT_STOPPED = 130

MAX_LINE = 1000
"""Letters of an error that are shown."""

SUMMARIES = {
    "demo": "run the whole path in about ten minutes, from prompts to the report page of an edited scene",
    "prompts": "write prompt pairs: two captions that differ by one edit",
    "rounds": "learn which prompt forms lead to accepted pairs, in rounds of prompts and pairs",
    "pairs": "make an image pair for each prompt pair with Prompt-to-Prompt, score it, keep or reject it",
    "calibrate": "measure which thresholds for pairs suit a CLIP, and write them into its folder",
    "train": "train the edit model on the accepted pairs",
    "train-control": "train a control branch (depth, ids, edges) on the pictures of a run",
    "world": "make scenes of the miniature world, with the exact truth of their edits",
    "clip": "make a clip: of the miniature world with its truth, an orbit of a scene, or from a film",
    "scenes": "fit every capture of a run",
    "fit": "fit Gaussian splats to a capture: nerfstudio, COLMAP, photographs, a video, ...",
    "region": "say which splats of a scene are meant: by words, clicks, masks, place or color",
    "edit": "edit a fitted scene or a clip by an instruction",
    "edits": "edit every scene of a run by several methods, for compare",
    "change": "recolor, move, turn, scale, copy or delete the splats of a region, at once",
    "generate": "make scenes, clips or pictures from captions",
    "export": "write a scene as PLY, or image pairs for Hugging Face, WebDataset or InstructPix2Pix",
    "import": "read somebody else's image pairs, to train on",
    "compare": "score every edit of a run on held-out views",
    "study": "compare methods on the scenes, edits, editors and seeds that a Python file names",
    "report": "write the page of a run, and the same as LaTeX, slides or a supplementary zip",
    "miniature": "train the models of the miniature world (in a clone)",
    "view": "look at scenes in the browser and edit them there",
    "serve": "let other machines edit with an editor of this one, over HTTP",
    "show": "print what a run holds: its stages, edits and scores",
    "ls": "list runs",
    "diagnose": "say which part makes one run worse than another, by exchanging one part at a time",
    "diff": "print what differs between two runs: config, versions, data, weights, scores",
    "rerun": "make a run again by the commands that made it, and print what differs",
    "track": "send the records of runs to trackio or MLflow",
    "bundle": "pack a run into one file that others can check",
    "verify": "check that a run or bundle is as it was written, and that its numbers follow from its pictures",
    "doctor": "say what this machine can do, and what to install for the rest",
}

SWITCHES = ("change", "clip", "diff", "doctor", "edit", "fit", "import", "miniature", "pairs", "region", "show")
SWITCHES += ("ls", "verify")
"""Commands whose Boolean options are switches, such as --json; elsewhere they take a value: --is-bf16 False."""


OVERVIEW = """usage: restage COMMAND [OPTIONS]

Edit 3D scenes by text, and show how well.

commands, in the order data flows:
{}

`restage COMMAND --help` explains each with an example. Start with: restage demo
`restage --completion bash` (or zsh, or fish) prints what completes these names in your shell: docs/install.md"""

BASH_COMPLETION = r"""_restage() {{
  local word=${{COMP_WORDS[COMP_CWORD]}}
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W "{names}" -- "$word"))
  elif [ "${{word#-}}" != "$word" ]; then
    local options=$(restage "${{COMP_WORDS[1]}}" --help 2>/dev/null | grep -oE -e '--[a-z][a-z.-]*' | sort -u -r)
    COMPREPLY=($(compgen -W "$options" -- "$word"))
  fi
}}
complete -o default -F _restage restage
"""
FISH_COMPLETION = r"""complete -c restage -n __fish_use_subcommand -a '{names}' -f
complete -c restage -n 'not __fish_use_subcommand; and string match -q -- "-*" (commandline -ct)' -a \
  '(restage (commandline -opc)[2] --help 2>/dev/null | string match -ra -- "--[a-z][a-z.-]*" | sort -u)'
"""
COMPLETIONS = {
    "bash": BASH_COMPLETION,
    "zsh": "autoload -U +X compinit bashcompinit && compinit -u && bashcompinit\n" + BASH_COMPLETION,
    "fish": FISH_COMPLETION,
}
"""What completes commands and options, by shell; options are those that a command's own help names."""


def _prepare_environment() -> None:
    # No downloads, and no progress bars but our own.
    switches = dict.fromkeys(("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"), "1")
    levels = dict.fromkeys(("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"), "error")
    for name, value in {**switches, **levels, "MPLBACKEND": "Agg"}.items():
        os.environ.setdefault(name, value)
    choose_kernel_cache(Path(__file__).parent)


def _run_command(name: str, arguments: Sequence[str]) -> None:
    import tyro

    from restage import commands

    command = commands.COMMANDS[name]()
    tyro.cli(
        command,
        args=list(arguments),
        prog=f"restage {name}",
        description=inspect.cleandoc(command.__doc__ or "").split("\n\nArgs:")[0],
        config=(tyro.conf.FlagCreatePairsOff if name in SWITCHES else tyro.conf.FlagConversionOff,),
    )


def run(arguments: Sequence[str]) -> int:
    """Run a command line: what comes after `restage`. Unexpected errors are raised.

    Returns:
        The exit code: 0 done, 2 bad input or a path that cannot be read or written, 3 no space left, 130 stopped by
        the user.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, SUMMARIES))
        commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in SUMMARIES.items())
        say(OVERVIEW.format(commands))
        if arguments:
            return 0
        from restage.audit.next_steps import describe_steps, next_steps

        say("\n".join(["", "Next, by what lies in runs/:", *describe_steps(next_steps())]))
        return EXIT_BAD_INPUT
    if arguments[0] == "--version":
        from restage import __version__

        say(f"restage {__version__}")
        return 0
    if arguments[0] == "--completion":
        script = COMPLETIONS.get(arguments[1] if len(arguments) > 1 else "")
        if script is None:
            say("restage --completion: expected one of bash, zsh or fish", file=sys.stderr)
            return EXIT_BAD_INPUT
        say(script.format(names=" ".join(SUMMARIES)), end="")
        return 0
    name = arguments[0]
    if name not in SUMMARIES:
        near = difflib.get_close_matches(name, SUMMARIES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of: {', '.join(SUMMARIES)}"
        say(f"restage: no command {name!r}; {hint}", file=sys.stderr)
        return EXIT_BAD_INPUT
    try:
        for argument in arguments:
            if "\0" in argument:
                raise InputError(f"expected text without NUL characters, got {argument!r}")
        # What reads the command line prints arguments as they are.
        is_odd = any(printable(argument) != argument for argument in arguments)
        with contextlib.redirect_stderr(PrintableStream(sys.stderr)) if is_odd else contextlib.nullcontext():
            _run_command(name, arguments[1:])
    except InputError as error:
        _say(name, str(error))
        return EXIT_DISK_FULL if error.__cause__ and is_disk_full(error.__cause__) else EXIT_BAD_INPUT
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or is_stop_requested():
            say("stopped; the same command goes on from here", file=sys.stderr)
            return EXIT_STOPPED
        not_text = [argument for argument in arguments if "\\ud" in ascii(argument)]
        if isinstance(error, UnicodeEncodeError) and not_text:
            _say(name, f"expected text or a path that is UTF-8, got {not_text[0]!r}")
            return EXIT_BAD_INPUT
        reason = system_error(error)
        if reason is None or (isinstance(reason, BrokenPipeError) and reason.filename is None):
            raise
        place = f"{reason.filename}: " if reason.filename is not None else ""
        hint = "; the same command goes on when there is space" if is_disk_full(reason) else ""
        _say(name, f"{place}{os.strerror(reason.errno or 0)}{hint}")
        return EXIT_DISK_FULL if is_disk_full(reason) else EXIT_BAD_INPUT
    return 0


def _say(command: str, problem: str) -> None:
    line = " ".join(problem.split())
    line = line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"
    say(f"restage {command}: {line}", file=sys.stderr)


def main() -> None:
    """Entry point of `restage`."""
    _prepare_environment()
    stop_on_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        code = run(sys.argv[1:])
    except BrokenPipeError:
        code = 0  # the reader, such as `head`, has gone: not an error
    except KeyboardInterrupt:
        code = EXIT_STOPPED
    except SystemExit as ended:
        code = ended.code
    try:
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered has nowhere to go, and Python would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _say("output", str(error.strerror))
            code = EXIT_DISK_FULL if is_disk_full(error) else EXIT_BAD_INPUT
    sys.exit(code)


if __name__ == "__main__":
    main()
