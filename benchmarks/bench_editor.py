"""The face editor of models/ in Chromium on one core: WebAssembly against the same loops in plain JavaScript."""

import base64
import os
from pathlib import Path

import numpy as np
import torch
from chromium import started_browser
from measuring import ROOT, Row, compared, interleaved
from playwright.sync_api import Browser, Page

from facevae.config.paths import DIRECTIONS, MODEL, PRIORS
from facevae.editor.page import build_page
from facevae.evaluate.directions import load_directions
from facevae.model import checkpoint
from facevae.model.inference import decode_all
from facevae.model.vae import VAE
from facevae.priors.fitting import load_priors

NUM_REPEATS = 5
NUM_FRAMES = 50
NUM_LATENTS = 1000
WASM = "exports.gatherMatmul;"
PLAIN = """exports.gatherMatmul;
gatherMatmul = (pixels, pixelsEnd, taps, tapsEnd, depth, weights, bias, width, slope) => {
  const values = new Float32Array(memory.buffer);
  const table = new Int32Array(memory.buffer);
  const stride = (tapsEnd - taps) * depth / 2; // floats of eight output channels
  for (let channel = 0; channel < width / 4; channel += 4) { // four pixels and four channels at a time
    const block = weights / 4 + (channel >> 3) * stride + (channel & 4);
    for (let pixel = pixels / 4; pixel < pixelsEnd / 4; pixel += 8) {
      const first = bias / 4 + channel;
      let a0 = values[first], a1 = values[first + 1], a2 = values[first + 2], a3 = values[first + 3];
      let b0 = a0, b1 = a1, b2 = a2, b3 = a3, c0 = a0, c1 = a1, c2 = a2, c3 = a3, d0 = a0, d1 = a1, d2 = a2, d3 = a3;
      let next = block;
      for (let tap = taps / 4; tap < tapsEnd / 4; tap++) {
        const a = (table[pixel] + table[tap]) >> 2, b = (table[pixel + 1] + table[tap]) >> 2;
        const c = (table[pixel + 2] + table[tap]) >> 2, d = (table[pixel + 3] + table[tap]) >> 2;
        for (let i = 0; i < depth >> 2; i++, next += 8) {
          const w0 = values[next], w1 = values[next + 1], w2 = values[next + 2], w3 = values[next + 3];
          const x = values[a + i], y = values[b + i], z = values[c + i], t = values[d + i];
          a0 += x * w0; a1 += x * w1; a2 += x * w2; a3 += x * w3;
          b0 += y * w0; b1 += y * w1; b2 += y * w2; b3 += y * w3;
          c0 += z * w0; c1 += z * w1; c2 += z * w2; c3 += z * w3;
          d0 += t * w0; d1 += t * w1; d2 += t * w2; d3 += t * w3;
        }
      }
      const sums = [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3];
      for (let i = 0; i < 16; i++) {
        values[(table[pixel + 4 + (i >> 2)] >> 2) + channel + (i & 3)] = sums[i] > 0 ? sums[i] : slope * sums[i];
      }
    }
  }
};"""
FRAMES = """async (count) => {
    const attribute = Object.keys(directions)[0];
    const start = performance.now();
    for (let i = 1; i <= count; i++) {
        setStrength(attribute, 3 * i / count); // what a slider does
        await show();
    }
    return (performance.now() - start) / count;
}"""
DECODE = """async (text) => {
    const latents = new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
    const pictures = [];
    for (let i = 0; i < latents.length; i += model.latentDim) {
        pictures.push(String.fromCharCode(...await ask("decode", latents.slice(i, i + model.latentDim))));
    }
    return btoa(pictures.join(""));
}"""


def measure(_: Path, root: Path) -> list[Row]:
    model, header = checkpoint.load(ROOT / MODEL)
    priors = load_priors(ROOT / PRIORS, fingerprint=header.fingerprint)
    directions = load_directions(ROOT / DIRECTIONS, fingerprint=header.fingerprint)
    text = build_page(model, header, priors, directions, seed=0)
    latents = priors.priors[priors.best].sample(NUM_LATENTS, torch.Generator().manual_seed(1))
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # which the browser inherits
    with started_browser() as browser:
        pages = {
            name: _opened(browser, root / ".facevae" / f"editor-{i}.html", text.replace(WASM, kernel))
            for i, (name, kernel) in enumerate({"WebAssembly": WASM, "plain JavaScript": PLAIN}.items())
        }
        contenders = {name: lambda page=page: float(page.evaluate(FRAMES, NUM_FRAMES)) for name, page in pages.items()}
        milliseconds = interleaved(contenders, NUM_REPEATS)
        difference = _largest_difference(pages["WebAssembly"], model, latents)
    os.sched_setaffinity(0, cores)
    return [
        Row("the page", len(text) / 1e6, "MB"),
        *compared(milliseconds, "WebAssembly", "ms from slider to picture", faster_is="less"),
        Row(f"largest difference to PyTorch, {NUM_LATENTS} latents", difference, "of 255"),
    ]


def _opened(browser: Browser, path: Path, text: str) -> Page:
    path.write_text(text, encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("#new:enabled")
    path.unlink()
    return page


def _largest_difference(page: Page, model: VAE, latents: torch.Tensor) -> float:
    expected = decode_all(model, latents).astype(int)
    text = page.evaluate(DECODE, base64.b64encode(latents.numpy().tobytes()).decode())
    rgba = np.frombuffer(base64.b64decode(text), np.uint8).reshape(*expected.shape[:3], 4).astype(int)
    return float(np.abs(rgba[..., : expected.shape[3]] - expected).max())
