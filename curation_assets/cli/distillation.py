"""Arguments, help and output of `curate distill`."""

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
        str | None, typer.Argument(help="Target whose checkpoint generates; optional if there is only one.")
    ] = None,
    responses: Annotated[int, typer.Option(min=1, help="Responses per prompt.")] = 4,
    temperature: Annotated[float, typer.Option(help="Sampling temperature: logits are divided by it.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens with this total probability.")] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens per response; truncated responses are discarded.")
    ] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random draws.")] = 0,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Use only this many prompts, drawn by seed; default: all.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Folder or s3://bucket/prefix to write to; default: the landing area.")
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Generate again for prompts that were done before.")] = False,
    config: ConfigOption = None,
) -> None:
    """Generate responses to the pool's prompts with a target's checkpoint (self-distillation).

    The responses are written to the landing area as one more file of traces, with the checkpoint as their `generator`.
    The next `curate run` processes them like any others: they join the pool from which every subset is selected. With
    `filters: {generators: [NAME]}` a subset selects only from them, with `exclude_generators: [NAME]` only from the
    others. Responses that the corpus already contains are discarded.

    Prompts that the same checkpoint answered before with the same settings are skipped (a larger `--responses` adds
    the missing ones), so repeat the command when the corpus has grown. Ctrl-C loses no finished work.
    """
    with clear_errors("curate distill"):
        from curation_assets.evaluation.distilled import GenerationRequest
        from curation_assets.evaluation.distilled import distill as ask
        from curation_resources.scoring.spec import Sampling
        from curation_resources.terminal import progress_bars

        workspace = load_workspace(config)
        names = [one.name for one in workspace.settings.targets]
        if target is None and len(names) > 1:
            raise UserError(f"there are several targets. Name one of {', '.join(names)}.")
        if target is not None and target not in names:
            raise UserError(unknown("target", target, names))
        try:
            sampling = Sampling(temperature, top_p, seed)
        except ValueError as error:
            raise UserError(str(error)) from error
        request = GenerationRequest(responses, sampling, max_new_tokens, prompts)
        with progress_bars(console):
            done = ask(workspace, workspace.settings.target(target or names[0]), request, to, anew)
        if not done.asked:
            where = ", ".join(done.files) or "no file: no response could be used"
            line = f"generator {done.generator}: all {done.before:,} prompts were answered before; responses are in "
            console.print(f"{line}{where} (--anew generates again)", soft_wrap=True)
            return
        again = f" ({done.before:,} were answered before)" if done.before else ""
        console.print(f"generator {done.generator}: {done.asked:,} prompts answered{again}", soft_wrap=True)
        if done.left_out:
            console.print("discarded: " + ", ".join(f"{count:,} {reason}" for reason, count in done.left_out.items()))
        if done.written:
            console.print(f"wrote {done.written:,} responses to {done.place}; next: curate run", soft_wrap=True)
