"""The face editor in a real browser: its arithmetic, each of its functions, and that nothing leaves the page."""

import base64
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest
import torch
from chromium import MILLISECONDS
from conftest import ROOT, disc_images, needs_browser
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Frame, Locator, Page, expect
from test_editor import DIRECTIONS, MODELS, page_of, priors_of, trained_looking

from facevae.config.params import load_params
from facevae.config.schema import Binarization
from facevae.crop import Crop
from facevae.data.image_file import fit_image
from facevae.editor.page import NUM_FACES
from facevae.image_input import to_pixels
from facevae.model.binarization import binarize
from facevae.model.inference import decode_all, encode_all
from facevae.model.vae import VAE

pytestmark = [needs_browser, pytest.mark.slow]

Pixels = NDArray[np.int64]  # (height, width, channels), 0 to 255
Latent = NDArray[np.float32]  # (latent_dim,)

TOLERANCE = 2  # of 255
DECODE = """async text => {
    const latents = new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
    const pictures = [];
    for (let i = 0; i < latents.length; i += model.latentDim) {
        pictures.push(String.fromCharCode(...await ask("decode", latents.slice(i, i + model.latentDim))));
    }
    return btoa(pictures.join(""));
}"""
ENCODE = """async text => Array.from(await ask("encode", Uint8Array.from(atob(text), (c) => c.charCodeAt(0))))"""


@pytest.fixture(scope="module")
def model() -> VAE:
    return trained_looking(normalization="batch", residual_blocks=1)


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """A function that opens a text as a page. At the end of the test no page has asked for anything else."""
    asked: list[str] = []
    pages: list[Page] = []

    def open_text(text: str, address: str = "", name: str = "editor.html", **options: Any) -> Page:
        path = tmp_path / name
        path.write_text(text)
        page = browser.new_page(**options)
        page.set_default_timeout(MILLISECONDS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: asked.append(str(error)))
        page.goto(f"{path.as_uri()}{address}")
        pages.append(page)
        return page

    yield open_text
    for page in pages:
        page.close()
    assert {url.partition("#")[0] for url in asked if not url.startswith("blob:")} <= {
        path.as_uri() for path in tmp_path.glob("*.html")
    }


@pytest.fixture
def page(model: VAE, open_page: Callable[..., Page]) -> Page:
    """The editor of a small model of whole images, showing its first face."""
    page = open_page(page_of(model, crop=None))
    expect(page.get_by_role("button", name="New face")).to_be_enabled()
    return page


def decoded(page: Page, latents: torch.Tensor, size: int) -> Pixels:
    """What the page's engine makes of latents (N, latent_dim): (N, height, width, 3)."""
    text = page.evaluate(DECODE, base64.b64encode(latents.numpy().tobytes()).decode())
    rgba = np.frombuffer(base64.b64decode(text), np.uint8).reshape(len(latents), size, size, 4)
    assert (rgba[..., 3] == 255).all()
    return rgba[..., :3].astype(int)


def assert_shows(page: Page | Frame, model: VAE, latent: Latent) -> None:
    """Wait until the page shows the picture of a latent (latent_dim,)."""
    picture = decode_all(model, torch.from_numpy(latent)[None].float())[0]
    expected = np.broadcast_to(picture, (*picture.shape[:2], 3))  # grey is shown as equal colours
    page.wait_for_function(
        """([expected, tolerance]) => {
            const canvas = document.getElementById("face");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const colours = data.filter((_, i) => i % 4 < 3);
            return colours.length === expected.length
                && colours.every((value, i) => Math.abs(value - expected[i]) <= tolerance);
        }""",
        arg=[expected.ravel().tolist(), TOLERANCE],
    )


def face(model: VAE, number: int) -> Latent:
    """A face of the page's bank, counted from one."""
    draws = priors_of(model).normal.sample(NUM_FACES, torch.Generator().manual_seed(0))
    values: Latent = draws[number - 1].numpy().astype(np.float16).astype(np.float32)
    return values


def address(page: Page) -> dict[str, str]:
    """The parts of the page's address after the hash."""
    page.wait_for_function("location.hash")
    return {key: values[0] for key, values in parse_qs(page.url.partition("#")[2]).items()}


def slider(page: Page | Frame, name: str) -> Locator:
    return page.get_by_role("slider", name=name, exact=True)


def choose_file(page: Page, content: bytes) -> None:
    page.get_by_label("Photograph", exact=True).set_input_files(
        FilePayload(name="photograph.png", mimeType="image/png", buffer=content)
    )


def png(pixels: NDArray[np.uint8]) -> bytes:
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def test_thousand_pictures_of_the_demo_equal_pytorch(open_page: Callable[..., Page]) -> None:
    params = load_params(ROOT / "params.yaml")
    model = trained_looking(image_size=params.data.image_size, **params.model.model_dump())
    latents = torch.randn(1000, params.model.latent_dim, generator=torch.Generator().manual_seed(5))
    expected = decode_all(model, latents).astype(int)
    assert expected.std() > 50
    found = decoded(open_page(page_of(model, {})), latents, params.data.image_size)
    assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("image_channels", [1, 3])
def test_engine_equals_pytorch_for_every_kind_of_layer(
    changes: dict[str, Any], image_channels: int, open_page: Callable[..., Page]
) -> None:
    model = trained_looking(image_channels, **changes)
    page = open_page(page_of(model))
    latents = torch.randn(5, 3, generator=torch.Generator().manual_seed(5))
    expected = decode_all(model, latents).astype(int)
    assert np.abs(decoded(page, latents, 8) - expected).max() <= TOLERANCE
    images = disc_images(3, channels=image_channels)
    means = encode_all(model, images).mean.numpy()
    encoded = [page.evaluate(ENCODE, base64.b64encode(image.tobytes()).decode()) for image in images]
    np.testing.assert_allclose(np.array(encoded), means, atol=5e-3 * np.abs(means).max())


def test_slider_moves_the_face_along_the_direction(page: Page, model: VAE) -> None:
    assert_shows(page, model, face(model, 1))
    slider(page, "Smiling").fill("1.5")
    assert_shows(page, model, face(model, 1) + 1.5 * DIRECTIONS["Smiling"].numpy())
    expect(page.get_by_role("button", name="Reset Smiling")).to_have_text("+1.5")
    slider(page, "Pale skin").fill("-3")
    both = face(model, 1) + 1.5 * DIRECTIONS["Smiling"].numpy() - 3 * DIRECTIONS["Pale_Skin"].numpy()
    assert_shows(page, model, both)
    page.get_by_role("button", name="Reset Smiling").click()
    assert_shows(page, model, face(model, 1) - 3 * DIRECTIONS["Pale_Skin"].numpy())
    page.get_by_role("button", name="Reset", exact=True).click()
    assert_shows(page, model, face(model, 1))


def test_each_gesture_is_undone(page: Page, model: VAE) -> None:
    slider(page, "Smiling").fill("2")
    page.get_by_role("button", name="New face").click()
    page.get_by_role("button", name="Draw a second face").click()
    undo = page.get_by_role("button", name="Undo")
    undo.click()
    expect(slider(page, "Share of the second face")).to_be_disabled()
    page.keyboard.press("Control+z")
    assert_shows(page, model, face(model, 1) + 2 * DIRECTIONS["Smiling"].numpy())
    expect(slider(page, "Smiling")).to_have_value("2")
    undo.click()
    assert_shows(page, model, face(model, 1))
    expect(undo).to_be_disabled()


def test_new_faces_come_from_the_bank(page: Page, model: VAE) -> None:
    page.get_by_role("button", name="New face").click()
    expect(page.get_by_role("status")).to_have_text(re.compile(rf"^Face \d+ of {NUM_FACES}$"))
    number = int(address(page)["face"])
    assert_shows(page, model, face(model, number))


def test_two_faces_are_mixed_along_the_arc(page: Page, model: VAE) -> None:
    page.get_by_role("button", name="Draw a second face").click()
    slider(page, "Share of the second face").fill("0.25")
    parts = address(page)
    first, second = face(model, int(parts["face"])), face(model, int(parts["second"]))
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    start = first / lengths[0]
    sideways = second - (second @ start) * start  # in the plane of both, at a right angle to the first
    sideways /= np.linalg.norm(sideways)
    angle = 0.25 * np.arctan2(second @ sideways, second @ start)
    length = lengths[0] + 0.25 * (lengths[1] - lengths[0])
    assert_shows(page, model, length * (np.cos(angle) * start + np.sin(angle) * sideways))
    page.get_by_role("button", name="Remove").click()
    assert_shows(page, model, first)


def test_walk_goes_on_until_it_is_stopped(page: Page, model: VAE) -> None:
    walk, picture = page.get_by_role("button", name="Walk"), "document.getElementById('face').toDataURL()"
    walk.click()
    for _ in range(3):
        page.wait_for_function(f"before => {picture} !== before", arg=page.evaluate(picture))
    page.get_by_role("button", name="Stop").click()
    assert address(page)["face"].startswith("~")
    expect(walk).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Undo").click()
    assert_shows(page, model, face(model, 1))


def test_saved_picture_is_the_face(page: Page, model: VAE) -> None:
    assert_shows(page, model, face(model, 1))
    with page.expect_download() as download:
        page.get_by_role("button", name="Save PNG").click()
    assert download.value.suggested_filename == "face.png"
    with Image.open(download.value.path()) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    expected = decode_all(model, torch.from_numpy(face(model, 1))[None])[0]
    assert np.abs(pixels - expected).max() <= TOLERANCE


@pytest.mark.parametrize(
    "size", [(8, 8), (40, 31), (5, 7), (1300, 1100)], ids=["same size", "larger", "smaller", "much larger"]
)
@pytest.mark.parametrize("use", ["Edit this face", "Mix with it"])
def test_photograph_goes_through_the_encoder(page: Page, model: VAE, size: tuple[int, int], use: str) -> None:
    pixels = disc_images(1, max(size))[0][: size[1], : size[0]]
    choose_file(page, png(pixels))
    page.get_by_role("button", name=use).click()
    prepared = fit_image(Image.fromarray(pixels), 8, 3, None)
    latent = encode_all(model, prepared[None]).mean[0].numpy()
    if use == "Mix with it":
        slider(page, "Share of the second face").fill("1")
    assert_shows(page, model, latent)


@pytest.mark.parametrize(
    ("image_channels", "crop", "binarization"),
    [(1, None, "none"), (3, Crop(side=148, raw_side=178), "none"), (1, None, "threshold")],
    ids=["grey", "the training's crop", "black and white"],
)
def test_photograph_is_prepared_as_in_training(
    image_channels: int, crop: Crop | None, binarization: Binarization, open_page: Callable[..., Page]
) -> None:
    model = trained_looking(image_channels, normalization="batch")
    page = open_page(page_of(model, crop=crop, binarization=binarization))
    expect(page.get_by_role("button", name="Use a photo")).to_be_enabled()
    pixels = disc_images(1, 40)[0][:, :31]
    choose_file(page, png(pixels))
    page.get_by_role("button", name="Edit this face").click()
    prepared = to_pixels(Image.fromarray(pixels), (8, 8, image_channels), crop)
    assert_shows(page, model, encode_all(model, binarize(prepared, binarization, 0)).mean[0].numpy())


def test_photograph_is_framed(page: Page, model: VAE) -> None:
    pixels = disc_images(1, 64)[0]
    choose_file(page, png(pixels))
    slider(page, "Zoom").fill("2")
    slider(page, "Left to right").fill("0")
    slider(page, "Top to bottom").fill("1")
    page.get_by_role("button", name="Edit this face").click()
    corner = fit_image(Image.fromarray(pixels[32:, :32]), 8, 3, None)
    assert_shows(page, model, encode_all(model, corner[None]).mean[0].numpy())


def test_file_that_is_no_image_is_refused(page: Page, model: VAE) -> None:
    choose_file(page, b"text")
    expect(page.get_by_role("status")).to_contain_text("cannot read that file")
    assert_shows(page, model, face(model, 1))


def test_address_restores_the_state(page: Page, model: VAE, open_page: Callable[..., Page]) -> None:
    page.get_by_role("button", name="New face").click()
    page.get_by_role("button", name="Walk").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Draw a second face").click()
    slider(page, "Smiling").fill("-1.2")
    parts = address(page)
    assert parts.keys() == {"model", "face", "second", "mix", "edit.Smiling"}
    other = open_page(page_of(model), page.url[page.url.index("#") :])
    expect(slider(other, "Smiling")).to_have_value("-1.2")
    latent = np.array(page.evaluate("Array.from(latentOf(state))"), np.float32)
    assert_shows(other, model, latent)
    np.testing.assert_array_equal(other.evaluate("Array.from(latentOf(state))"), latent)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("#model=ffffffff&face=2", "another model"),
        ("#model=01234567&face=0", "damaged"),
        ("#model=01234567&face=1001", "damaged"),
        ("#model=01234567&face=~AAAA", "damaged"),
        ("#model=01234567&face=~!", "damaged"),
        ("#model=01234567&face=2&mix=2&second=3", "damaged"),
        ("#model=01234567&face=2&edit.Unknown=1", "damaged"),
        ("#model=01234567&face=2&edit.Smiling=1e9", "damaged"),
        ("#model=01234567&face=2&edit.Smiling=x", "damaged"),
    ],
)
def test_bad_address_is_refused(model: VAE, open_page: Callable[..., Page], address: str, message: str) -> None:
    page = open_page(page_of(model), address)
    expect(page.get_by_role("status")).to_contain_text(message)
    assert_shows(page, model, face(model, 1))


def test_everything_is_reached_by_keyboard_and_has_a_name(page: Page) -> None:
    slider(page, "Smiling").fill("1")
    page.get_by_role("button", name="Draw a second face").click()
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    named = [node for node in nodes if node.get("role", {}).get("value") in ("button", "slider", "image")]
    assert len(named) > 12
    assert all(node["name"]["value"].strip() for node in named)
    controls = "main button:enabled, main input:enabled"
    expected = set(range(page.locator(controls).count()))
    reached = set()
    focused = f"[...document.querySelectorAll('{controls}')].indexOf(document.activeElement)"
    page.locator("body").press("Home")
    for _ in range(2 * len(expected)):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(focused))
    assert reached - {-1} == expected
    slider(page, "Smiling").focus()
    page.keyboard.press("ArrowRight")
    expect(slider(page, "Smiling")).to_have_attribute("aria-valuetext", "+1.1")
    expect(page.get_by_role("img", name=re.compile(r"Smiling \+1\.1"))).to_be_visible()


def test_browser_refuses_requests_of_the_page(page: Page) -> None:
    directive = page.evaluate("""() => new Promise((resolve) => {
        document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
        fetch("http://127.0.0.1:9/").catch(() => setTimeout(resolve, 1000, "none"));
    })""")
    assert directive == "connect-src"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(model: VAE, open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(page_of(model), color_scheme=scheme)
    colours = page.evaluate("""() => {
        const style = (selector) => getComputedStyle(document.querySelector(selector));
        const of = (selector, key) => style(selector)[key].match(/[\\d.]+/g).map(Number);
        const paper = of("body", "backgroundColor");
        return [[of("body", "color"), paper], [of(".note", "color"), paper], [of("#reset", "color"), paper],
                [of("#new", "color"), of("#new", "backgroundColor")]];
    }""")

    def luminance(colour: list[float]) -> float:  # WCAG 2.2
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour[:3]) / 255]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for pair in colours:
        low, high = sorted(luminance(colour) for colour in pair)
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair
    assert (luminance(colours[0][1]) < 0.2) == (scheme == "dark")


def test_page_fits_a_phone(model: VAE, open_page: Callable[..., Page]) -> None:
    page = open_page(
        page_of(model, {f"Attribute_{i}": torch.ones(3) for i in range(40)}), viewport={"width": 390, "height": 844}
    )
    expect(page.get_by_role("button", name="New face")).to_be_enabled()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    last = page.get_by_role("slider").last
    last.scroll_into_view_if_needed()
    expect(page.locator("#face")).to_be_in_viewport()
    last.fill("1")
    expect(last).to_have_value("1")


def test_page_works_in_a_sandbox(model: VAE, open_page: Callable[..., Page], tmp_path: Path) -> None:
    """As MLflow shows it: scripts run, but the page has no origin, no storage and no downloads."""
    (tmp_path / "inner.html").write_text(page_of(model))
    outer = open_page(
        '<iframe sandbox="allow-scripts" src="inner.html" width="900" height="700"></iframe>', "", "outer.html"
    )
    handle = outer.locator("iframe").element_handle()
    frame = handle.content_frame()
    assert frame is not None
    slider(frame, "Smiling").fill("1.5")
    assert_shows(frame, model, face(model, 1) + 1.5 * DIRECTIONS["Smiling"].numpy())
    frame.get_by_role("button", name="Save PNG").click()
    expect(frame.get_by_text("may block downloads")).to_be_visible()
    expect(frame.get_by_role("img", name="The face", exact=True)).to_have_js_property("naturalWidth", 8)
    frame.get_by_role("button", name="Close").click()
    frame.get_by_role("button", name="Copy link").click()
    expect(frame.get_by_label("Address")).to_have_value("#model=01234567&face=1&edit.Smiling=1.5")
