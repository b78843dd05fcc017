"""The released copy of the suite, and verdicts first in the index."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from t2t_analysis._paths import notebooks_dir
from t2t_analysis.errors import DataError
from t2t_analysis.reports.digest import results_markdown, write_figures
from t2t_analysis.reports.index import write_index
from t2t_analysis.reports.release import LIMIT, release, smaller

LEDGER = {
    "about": "made runs <b>",
    "verdicts": [
        {
            "claim": "t2t-helps",
            "statement": "The T2T module helps & more.",
            "said": "Table 7",
            "verdict": "contradicted",
            "notebook": "training_from_scratch",
            "evidence": [
                {
                    "about": "made runs <b>",
                    "basis": "runs | over seeds",
                    "statement": "The T2T module helps & more.",
                    "verdict": "contradicted",
                    "size": "−0.100 [−0.200, −0.050], n = 5 seeds",
                    "compared": "soft minus hard",
                    "why": "",
                    "numbers": ["top-1: −0.100 [−0.200, −0.050], contradicted", "beside: not tested"],
                },
                {"about": "b", "basis": "alone", "statement": "It is asked of b.", "verdict": "open", "size": "",
                 "why": "", "numbers": []},
                {"about": "c", "basis": "alone", "statement": "It is asked of b.", "verdict": "not tested", "size": "",
                 "why": "no number", "numbers": []},
            ],
        }
    ],
}  # fmt: skip


def put(folder: Path, notebook: str, *, page: str = "<p>page</p>", **columns: Any) -> None:
    """A report as the runner leaves it."""
    stem = f"{notebook}__a__vs__b"
    about = {
        "stem": stem, "notebook": notebook, "title": notebook, "model": "a", "baseline": "b", "status": "done",
        "commit": "0123456789ab", "versions": {"python": "3.11"}, "findings": ["One."], "figures": 3,
        "page_bytes": len(page), "parameters": {}, "untrained": [],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.html").write_text(page, encoding="utf-8")
    (folder / f"{stem}.ipynb").write_text("{}", encoding="utf-8")
    (folder / f"{stem}.json").write_text(json.dumps(about | columns), encoding="utf-8")


def test_verdicts_come_before_everything_else_with_links_to_their_figures(tmp_path: Path) -> None:
    put(tmp_path, "training_from_scratch")
    put(tmp_path, "claims", verdicts=[LEDGER])
    text = write_index(tmp_path).read_text(encoding="utf-8")
    assert text.index('id="verdicts"') < text.index('id="reports"')
    assert 'id="matrix"' not in text  # of one pair the list says it all
    assert "made runs &lt;b&gt;" in text
    assert "The T2T module helps &amp; more." in text
    row = re.search(r"<tr>\s*<th[^>]*>The T2T.*?</tr>", text, re.DOTALL)
    assert row
    cells = re.findall(r'<td data-basis="(.*?)">(.*?)</td>', row[0], re.DOTALL)
    assert [basis for basis, _ in cells] == ["runs | over seeds", "alone"]
    assert "n = 5 seeds <small>soft minus hard</small>" in cells[0][1]
    assert "<small>It is asked of b.</small>" in cells[1][1]
    assert "It is asked" not in cells[0][1]
    assert "no number" not in cells[1][1]  # others of the kind were tested
    assert 'class="chip chip-contradicted">✖ contradicted<' in row[0]
    assert 'href="training_from_scratch__a__vs__b.html"' in row[0]
    assert "Made from commit 0123456789ab, with python 3.11." in text


def test_an_index_without_claims_has_no_empty_table(tmp_path: Path) -> None:
    put(tmp_path, "cost")
    assert "verdicts" not in write_index(tmp_path).read_text(encoding="utf-8").lower()


def test_a_release_holds_pages_and_an_index_that_links_only_to_what_is_there(tmp_path: Path) -> None:
    put(tmp_path / "reports", "cost")
    names = release(tmp_path / "reports", tmp_path / "reports" / "released")
    assert names == ["cost__a__vs__b.html", "cost__a__vs__b.json", "index.html"]
    text = (tmp_path / "reports" / "released" / "index.html").read_text(encoding="utf-8")
    links = list(re.findall(r'href="([^"#]+)"', text))
    assert set(links) == {"cost__a__vs__b.html"}
    put(tmp_path / "reports", "claims")
    assert len(release(tmp_path / "reports", tmp_path / "reports" / "released")) == 5


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"status": "failed", "failure": "no space left"}, "claims__a__vs__b failed: no space left"),
        ({"commit": "ffff+"}, "commit first"),
        ({"commit": "another"}, "reports of several commits: 0123456789ab, another"),
        ({"page": "x" * (LIMIT + 1)}, "MB, 5 MB at most"),
    ],
)
def test_what_is_not_fit_is_refused_and_the_old_release_stays(
    tmp_path: Path, columns: dict[str, Any], words: str
) -> None:
    put(tmp_path, "cost")
    release(tmp_path, tmp_path / "released")
    put(tmp_path, "claims", **columns)
    with pytest.raises(DataError, match=words):
        release(tmp_path, tmp_path / "released")
    assert (tmp_path / "released" / "cost__a__vs__b.html").is_file()
    assert not (tmp_path / "released" / "claims__a__vs__b.html").exists()
    with pytest.raises(DataError, match="no report in"):
        release(tmp_path / "nothing", tmp_path / "released")


def test_a_suite_in_a_folder_of_the_release_stays_is_linked_and_names_no_folder_of_this_machine(
    tmp_path: Path,
) -> None:
    weights = tmp_path / "w.safetensors"
    weights.touch()
    reports, other, released = (tmp_path / name for name in ("reports", "other", "released"))
    put(reports, "cost")
    put(other, "cost", page=f"<p>-p weights {weights}</p>", parameters={"weights": str(weights)})
    release(reports, released)
    release(other, released / "alone")
    for made in (released / "alone").glob("cost*"):
        assert str(tmp_path) not in made.read_text(encoding="utf-8")
        assert "w.safetensors" in made.read_text(encoding="utf-8")
    assert '/index.html">Other suites</a>' in (released / "alone" / "index.html").read_text(encoding="utf-8")
    release(reports, released)
    assert 'href="alone/index.html"' in (released / "index.html").read_text(encoding="utf-8")
    assert "/reports/released/alone/index.html)" in results_markdown(released)


def test_pictures_shrink_and_keep_their_colours_to_the_eye() -> None:
    import base64
    import io

    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 255, 200)[None, :, None] * np.ones((80, 1, 3)) * [1.0, 0.5, 0.2]
    buffer = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(buffer, format="png", compress_level=0)
    page = f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"> text'
    shrunk = smaller(page)
    assert len(shrunk) < len(page) / 3
    assert shrunk.endswith("> text")
    encoded = re.search(r"base64,([^\"]+)", shrunk)
    assert encoded
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded[1]))).convert("RGB"), dtype=float)
    assert np.abs(seen - ramp).max() < 8
    assert smaller(shrunk) == shrunk


def test_results_as_markdown_hold_verdicts_answers_and_pictures(tmp_path: Path) -> None:
    line = '<path style="stroke: currentColor"></path>'
    drawn = f'<figure><svg viewbox="0 0 1 1" aria-label="A line">{line}</svg></figure>'
    put(tmp_path / "released", "claims", page=drawn, verdicts=[LEDGER])
    write_figures(tmp_path / "released")
    text = results_markdown(tmp_path / "released")
    assert "| claim | runs ¦ over seeds | alone |" in text
    size = "−0.100 [−0.200, −0.050], n = 5 seeds"
    assert (
        f"| The T2T module helps & more. | ✖ contradicted: {size} | *It is asked of b.*<br>□ open (b) |"
        in text
    )
    assert "One." in text
    (picture,) = re.findall(r"!\[.*\]\(\.\./reports/(released/figures/.*)\)", text)
    svg = (tmp_path / picture).read_text(encoding="utf-8")
    assert 'viewBox="0 0 1 1"' in svg
    assert "#000000" in svg


def test_the_results_in_the_docs_are_those_of_the_released_reports() -> None:
    root = notebooks_dir().parent
    written = (root / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == results_markdown(root / "reports" / "released"), (
        "run python -m t2t_analysis report --release"
    )


SUITES = sorted((notebooks_dir().parent / "reports" / "released").glob("*/index.html"))
assert SUITES, "no suite of real weights among the released ones"


@pytest.mark.parametrize("index", SUITES, ids=[path.parent.name for path in SUITES])
def test_a_released_suite_of_real_weights_says_what_it_was_made_of(index: Path) -> None:
    """Not made again here, since its weights are not kept: links, one clean commit, images, weights, size."""
    folder = index.parent
    about = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    assert len({report["commit"] for report in about}) == 1
    assert not about[0]["commit"].endswith("+")
    assert {report["parameters"]["data"] for report in about} == {
        "photos"
    }  # embedded: no picture from elsewhere
    for report in about:
        page = (folder / f"{report['stem']}.html").read_text(encoding="utf-8")
        assert "/" not in report["parameters"]["weights"]
        assert "SHA-256" in page
        assert not re.search(r'(src|href)="(https?:)?/(?!/)', page)
    for link in re.findall(r'href="([^"#]+)"', index.read_text(encoding="utf-8")):
        assert (folder / link).is_file(), link
    assert sum(path.stat().st_size for path in folder.rglob("*")) < LIMIT
