"""MLflow's pages in a real browser: runs of DVC's queue can be found, compared and looked at."""

import json
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from chromium import MILLISECONDS
from conftest import mlflow_server, needs_browser
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from facevae.tracking.pages import address_of_runs

pytestmark = [
    needs_browser,
    pytest.mark.filterwarnings("ignore"),  # MLflow and its dependencies warn about each other
    pytest.mark.xdist_group("experiments"),
]


@pytest.fixture(scope="module")
def server(experiments: Path) -> Iterator[str]:
    """The address of an MLflow server on the experiments' store."""
    with mlflow_server(experiments) as address:
        yield address


@pytest.fixture
def page(server: str, browser: Browser) -> Iterator[Page]:
    """The page with the runs of MLflow's experiment "tests", reached from its first page."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(MILLISECONDS)
    page.goto(server)
    page.get_by_role("button", name="Model training").click()  # the other choice is for language models
    page.get_by_role("link", name="tests", exact=True).click()
    yield page
    page.close()


def recorded(folder: Path, experiment: str, path: str) -> bytes:
    """The content of a file in a DVC experiment."""
    listed = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{experiment}"],
        cwd=folder, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (reference,) = listed.splitlines()
    return subprocess.run(["git", "show", f"{reference}:{path}"], cwd=folder, capture_output=True, check=True).stdout


def cells(page: Page, header: str) -> Locator:
    """The cells of the row with this header, one per run."""
    return (
        page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=header, exact=True)).get_by_role("cell")
    )


def test_the_printed_address_shows_the_runs(
    server: str, browser: Browser, experiments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(experiments)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(MILLISECONDS)
    page.goto(address_of_runs(server, "tests"))
    expect(page.get_by_role("gridcell").get_by_role("link", name="beta-1", exact=True)).to_be_visible()
    page.close()
    page = browser.new_page(viewport={"width": 1600, "height": 1000})  # a new one, since only the fragment differs
    page.set_default_timeout(MILLISECONDS)
    page.goto(address_of_runs(server, "tests", "attributes.run_name = 'beta-2'"))
    expect(page.get_by_role("gridcell").get_by_role("link", name="beta-2", exact=True)).to_be_visible()
    expect(page.get_by_role("gridcell").get_by_role("link", name="beta-1", exact=True)).to_have_count(0)
    page.close()


def test_a_run_says_what_it_is(page: Page) -> None:
    page.get_by_role("link", name="beta-1", exact=True).click()
    expect(page.get_by_text("facevae where")).to_be_visible()
    expect(page.get_by_role("cell", name="squared error", exact=True)).to_be_visible()
    expect(page.get_by_text("mlflow.facevae.process")).to_have_count(0)


def test_the_runs_are_listed_under_the_names_of_the_experiments(page: Page, pytestconfig: pytest.Config) -> None:
    names = {f"beta-{i}" for i in range(1, pytestconfig.getoption("--num-experiments") + 1)}
    links = page.get_by_role("gridcell").locator("a[href*='/runs/']")
    expect(links).to_have_count(len(names))
    assert set(links.all_inner_texts()) == names


def test_two_runs_are_compared(page: Page, experiments: Path) -> None:
    for name in ("beta-1", "beta-2"):
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))
        row.get_by_role("checkbox", name="toggle row selection").check()
    page.get_by_role("button", name="Compare", exact=True).click()

    expect(cells(page, "train.beta")).to_have_count(2)
    names = cells(page, "Run Name:").all_inner_texts()
    betas = cells(page, "train.beta").all_inner_texts()
    assert dict(zip(names, betas, strict=True)) == {"beta-1": "1.5", "beta-2": "2.5"}

    expect(page.get_by_role("link", name="aggregate_kl_nats", exact=True)).to_be_visible()
    metrics, values = (grid.inner_text().split() for grid in page.get_by_role("grid").all())
    first = 2 * metrics.index("aggregate_kl_nats")  # two values per metric, one for each run
    files = [json.loads(recorded(experiments, name, "metrics/evaluate.json")) for name in names]
    shown = [float(value) for value in values[first : first + 2]]
    assert shown == pytest.approx([file["aggregate_kl_nats"] for file in files], abs=0.05)

    expect(page.get_by_text("samples.png", exact=True)).to_be_visible()
    plot = page.get_by_role("tabpanel", name="Parallel Coordinates Plot").locator("svg")
    expect(plot.get_by_text("train.beta", exact=True)).to_be_visible()


def test_a_figure_is_displayed(page: Page, experiments: Path) -> None:
    page.get_by_role("link", name="beta-1", exact=True).click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("samples.png", exact=True).click()
    figure = page.get_by_role("img", name="samples.png")
    expect(figure).to_be_visible()
    with Image.open(BytesIO(recorded(experiments, "beta-1", "plots/samples.png"))) as image:
        expect(figure).to_have_js_property("naturalWidth", image.width)  # 0 before it is decoded
        expect(figure).to_have_js_property("naturalHeight", image.height)


def test_the_face_editor_works_inside_mlflow(page: Page) -> None:
    page.get_by_role("link", name="beta-1", exact=True).click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("editor.html", exact=True).click()
    element = page.locator("iframe").element_handle()
    frame = element.content_frame()
    assert frame is not None
    slider = frame.get_by_role("slider", name="Eyeglasses")
    expect(slider).to_be_enabled()
    picture = "document.getElementById('face').toDataURL()"
    before = frame.evaluate(picture)
    slider.fill("3")
    expect(frame.get_by_role("button", name="Reset Eyeglasses")).to_have_text("+3.0")
    frame.wait_for_function(f"before => {picture} !== before", arg=before)
