"""The words, options and output of `curate distill`."""

from __future__ import annotations

from typing import Annotated

import typer

from curation_assets.cli.command import ConfigOption, clear_errors, console, load_workspace
from curation_resources.errors import UserError
from curation_resources.sections import unknown

commands = typer.Typer()


@commands.command()
def distill(
    target: Annotated[
        str | None, typer.Argument(help="Whose checkpoint is asked; may be left out if there is one target.")
    ] = None,
    responses: Annotated[int, typer.Option(min=1, help="Responses to each prompt.")] = 4,
    temperature: Annotated[float, typer.Option(help="Logits are divided by it before a token is drawn.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this probability.")] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens after which a response is cut off; such are left out.")
    ] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Ask so many prompts, drawn by seed; default: all.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Folder or s3://bucket/prefix to write to; default: the landing area.")
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Ask what was asked before once more.")] = False,
    config: ConfigOption = None,
) -> None:
    """Let a target's checkpoint answer the prompts of the pool (self-distillation).

    What it says lands as one more file of traces whose rows name it as `generator`; the next `curate run` carries them
    through like any others: they join the pool, out of which every subset chooses. `filters: {generators: [NAME]}` of a
    subset chooses among them alone, `exclude_generators: [NAME]` among the others. A response that the corpus holds
    already is left out.

    Prompts that were asked before, of the same checkpoint in the same way, are not asked again (more `--responses` add
    those that are missing): call it once more when the corpus has grown. Ctrl-C loses nothing.
    """
    with clear_errors("curate distill"):
        from curation_assets.evaluation.distilled import Wish
        from curation_assets.evaluation.distilled import distill as ask
        from curation_resources.scoring.spec import Sampling
        from curation_resources.terminal import progress_bars

        workspace = load_workspace(config)
        names = [one.name for one in workspace.settings.targets]
        if target is None and len(names) > 1:
            raise UserError(f"which target? Name one of {', '.join(names)}")
        if target is not None and target not in names:
            raise UserError(unknown("target", target, names))
        try:
            sampling = Sampling(temperature, top_p, seed)
        except ValueError as error:
            raise UserError(str(error)) from error
        wish = Wish(responses, sampling, max_new_tokens, prompts)
        with progress_bars(console):
            done = ask(workspace, workspace.settings.target(target or names[0]), wish, to, anew)
        if not done.asked:
            where = ", ".join(done.files) or "no file: nothing that was said could be used"
            line = f"generator {done.generator}: all {done.before:,} prompts were asked before; what was said lies in "
            console.print(f"{line}{where} (--anew asks again)", soft_wrap=True)
            return
        again = f" ({done.before:,} were asked before)" if done.before else ""
        console.print(f"generator {done.generator}: {done.asked:,} prompts asked{again}", soft_wrap=True)
        if done.left_out:
            console.print("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in done.left_out.items()))
        if done.written:
            console.print(f"wrote {done.written:,} responses to {done.place}; next: curate run", soft_wrap=True)
