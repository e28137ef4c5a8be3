"""Report how a change affects the results: compare params, metrics and figures of the work tree with a base commit.

Writes report.md, and the figures into before/ and after/ beside it. The report depends on the two states alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np

from facevae.data.image_file import BadImageError, read_image
from facevae.errors import UserError, reported_errors

SIDES = ("before", "after")
Pictures = dict[str, dict[str, bytes]]  # by side and by file name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", metavar="REV", help="default: the merge base of HEAD and origin/main, or HEAD")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("report"), help="default: report")
    parser.add_argument("--image-url", metavar="PREFIX", default="", help="the address of before/ and after/")
    arguments = parser.parse_args()
    with reported_errors():
        head = git("rev-parse", "--verify", "HEAD").decode().strip()
        base = find_base(arguments.base)
        check_output(arguments.output)
        state = "with" if git("status", "--porcelain", "--untracked-files=no") else "without"
        compared = f"Before: commit `{base[:7]}`. After: the work tree on `{head[:7]}`, {state} uncommitted changes."
        lines = ["# Before and after", "", compared]
        lines += [*values("Parameters", "params", base), *values("Metrics", "metrics", base, "--all")]
        pictures = find_pictures(base)
        lines += figures(pictures, arguments.image_url and arguments.image_url.rstrip("/") + "/")
        write(arguments.output, "\n".join(lines) + "\n", pictures)
    print(arguments.output / "report.md")


def git(*arguments: str, error: str = "") -> bytes:
    result = subprocess.run(["git", *arguments], capture_output=True, check=False)
    if result.returncode:
        said = result.stderr.decode().partition("\n")[0]
        raise UserError(error or f"{Path.cwd()}: git says {said!r}. Run this at the top of a clone that has a commit")
    return result.stdout


def dvc(*arguments: str) -> str:
    program = Path(sys.executable).with_name("dvc")
    for needed in (program, Path("dvc.yaml").resolve()):
        if not needed.exists():
            raise UserError(f"{needed} is missing. Run this with .venv/bin/python at the top of a clone")
    result = subprocess.run([program, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise UserError(f"`dvc {' '.join(arguments)}` failed with the message above")
    return result.stdout


def find_base(revision: str | None) -> str:
    if revision is None:
        shared = subprocess.run(["git", "merge-base", "HEAD", "origin/main"], capture_output=True, check=False)
        revision = shared.stdout.decode().strip() or "HEAD"
    error = f"--base: {revision!r} is not a commit here. `git log --all` lists them, `git fetch` gets more"
    return git("rev-parse", "--verify", f"{revision}^{{commit}}", error=error).decode().strip()


def check_output(output: Path) -> None:
    """Refuse to replace a folder that is not a report."""
    inside = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if inside and not {"report.md"} <= inside <= {"report.md", *SIDES}:
        foreign = min(inside - {"report.md", *SIDES}, default="no report.md")
        raise UserError(
            f"--output: {output} is not a report: it holds {foreign}. Choose another folder, or move it away"
        )


def find_pictures(base: str) -> Pictures:
    names = git("ls-tree", "-z", "--name-only", base, "plots/").decode().split("\0")
    before = {Path(name).name: git("cat-file", "blob", f"{base}:./{name}") for name in names if name.endswith(".png")}
    return {"before": before, "after": {path.name: path.read_bytes() for path in Path("plots").glob("*.png")}}


def values(title: str, kind: str, base: str, *options: str) -> list[str]:
    """A section on params or metrics, sorted because DVC's order varies."""
    found = json.loads(dvc(kind, "diff", "--json", *options, base))
    rows, same = [], True
    for file, name, pair in sorted((file, *item) for file, pairs in found.items() for item in pairs.items()):
        old, new, change = pair["old"], pair["new"], pair.get("diff")
        same &= old == new
        cells = [file, name, *("-" if value is None else str(value).replace("|", r"\|") for value in (old, new))]
        cells += [f"{change:+.4g}" if change else "", f"{100 * change / abs(old):+.3g} %" if change and old else ""]
        rows.append(f"| {' | '.join(cells)} |")
    table = ["", "| file | name | before | after | change | relative |", "|---|---|---:|---:|---:|---:|", *rows]
    return ["", f"## {title}", *(["", "Nothing changed."] if same else []), *(table if rows else [])]


def figures(pictures: Pictures, url: str) -> list[str]:
    before, after = (pictures[side] for side in SIDES)
    names = sorted(before.keys() | after.keys())
    same = [name for name in names if before.get(name) == after.get(name)]
    links = {side: {name: f"![{side}/{name}]({url}{side}/{quote(name)})" for name in pictures[side]} for side in SIDES}
    lines = ["", "## Figures", "", "| figure | | mean absolute difference of the pixels, 0 to 255 |", "|---|---|---:|"]
    lines += [f"| {name} | {comparison(before.get(name), after.get(name))} |" for name in names]
    for name in sorted(set(names) - set(same)):
        row = " | ".join(links[side].get(name, "-") for side in SIDES)
        lines += ["", f"### {name}", "", "| before | after |", "|---|---|", f"| {row} |"]
    if same:
        lines += ["", f"<details><summary>The same on both sides: {len(same)}</summary>"]
        lines += [line for name in same for line in ("", f"### {name}", "", links["after"][name])]
        lines += ["", "</details>"]
    return lines


def comparison(before: bytes | None, after: bytes | None) -> str:
    """Two cells: whether the bytes are equal, and how far apart the pixels are."""
    if before is None or after is None:
        return "new |" if before is None else "removed |"
    if before == after:
        return "same bytes |"
    try:
        old, new = (np.asarray(read_image(BytesIO(side)).convert("RGB"), dtype=np.float64) for side in (before, after))
    except BadImageError as error:
        return f"other bytes | cannot be compared: {error}"
    if old.shape != new.shape:
        return f"other bytes | {old.shape[1]} x {old.shape[0]} pixels became {new.shape[1]} x {new.shape[0]}"
    return f"other bytes | {np.abs(new - old).mean():.3g}"


def write(output: Path, text: str, pictures: Pictures) -> None:
    """Write the report beside its place, then move it there as a whole."""
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            made = Path(folder, "made")
            for side, files in pictures.items():
                (made / side).mkdir(parents=True)
                for name, content in files.items():
                    (made / side / name).write_bytes(content)
            (made / "report.md").write_text(text, encoding="utf-8")
            if output.is_dir():
                output.rename(Path(folder, "former"))
            made.rename(output)
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error.strerror}. Choose another folder") from error


if __name__ == "__main__":
    main()
