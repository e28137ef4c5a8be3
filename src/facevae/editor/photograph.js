// A photograph of one's own, cropped and resized as the training images were, and framed by hand.

const LARGEST_SIDE = 1024; // pixels; a larger crop is first reduced by the browser

// Pillow's filters: Hamming's window shrinks, a bicubic kernel enlarges.
const FILTERS = {
  shrink: {
    reach: 1,
    weight: (x) => (x === 0 ? 1 : (Math.sin(Math.PI * x) / (Math.PI * x)) * (0.54 + 0.46 * Math.cos(Math.PI * x))),
  },
  enlarge: {
    reach: 2,
    weight(x) {
      const d = Math.abs(x);
      return d < 1 ? (1.5 * d - 2.5) * d * d + 1 : -0.5 * (((d - 5) * d + 8) * d - 4);
    },
  },
};

// Resize each row from `before` to `after` pixels of `channels` values, and transpose: twice is the whole resizing.
function resizedRows(pixels, rows, before, after, channels) {
  const { reach, weight } = before > after ? FILTERS.shrink : FILTERS.enlarge;
  const stretch = Math.max(1, before / after);
  const result = new Uint8ClampedArray(after * rows * channels);
  for (let column = 0; column < after; column++) {
    const centre = ((column + 0.5) * before) / after;
    const first = Math.max(0, Math.floor(centre - reach * stretch + 0.5));
    const end = Math.min(before, Math.floor(centre + reach * stretch + 0.5));
    const weights = Array.from({ length: end - first }, (_, i) => weight((first + i + 0.5 - centre) / stretch));
    const total = weights.reduce((sum, value) => sum + value, 0);
    for (let row = 0; row < rows; row++) {
      for (let channel = 0; channel < channels; channel++) {
        let sum = 0;
        weights.forEach((value, i) => (sum += value * pixels[(row * before + first + i) * channels + channel]));
        result[(column * rows + row) * channels + channel] = sum / total;
      }
    }
  }
  return result;
}

function resized(pixels, before, after, channels) {
  if (before === after) return pixels;
  return resizedRows(resizedRows(pixels, before, before, after, channels), after, before, after, channels);
}

// The pixels (imageSize, imageSize, channels) of a square of a photograph that the encoder takes.
function pixelsOf(photograph, { left, top, side }) {
  const drawn = Math.min(side, LARGEST_SIDE);
  const context = new OffscreenCanvas(drawn, drawn).getContext("2d");
  context.fillStyle = "white"; // below transparent pixels
  context.fillRect(0, 0, drawn, drawn);
  context.imageSmoothingQuality = "high";
  context.drawImage(photograph, left, top, side, side, 0, 0, drawn, drawn);
  const { data } = context.getImageData(0, 0, drawn, drawn);
  const pixels = new Uint8ClampedArray(drawn * drawn * model.channels);
  for (let i = 0; i < drawn * drawn; i++) {
    const [red, green, blue] = data.subarray(4 * i, 4 * i + 3);
    if (model.channels === 3) pixels.set([red, green, blue], 3 * i);
    else pixels[i] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16; // as Pillow turns colours to grey
  }
  const small = resized(pixels, drawn, model.imageSize, model.channels);
  return model.binarization === "none" ? small : small.map((value) => (value < 128 ? 0 : 255));
}

function squareOf(photograph) {
  const [zoom, across, down] = ["zoom", "across", "down"].map((id) => element(id).valueAsNumber);
  const side = Math.max(1, Math.round(Math.min(photograph.width, photograph.height) / zoom));
  const [left, top] = [Math.floor(across * (photograph.width - side)), Math.floor(down * (photograph.height - side))];
  return { left, top, side };
}

// Let the user frame a photograph. The promise is of {use, latent}, where `use` is "first", "second" or "".
async function framed(file) {
  const photograph = await createImageBitmap(file);
  const inputs = ["zoom", "across", "down"].map(element);
  for (const input of inputs) input.value = input.defaultValue;
  if (model.crop !== null) element("zoom").value = model.crop.raw_side / model.crop.side; // in proportion, as in training
  let latent;
  const show = latestOnly(async () => {
    const pixels = pixelsOf(photograph, squareOf(photograph));
    draw(element("framed"), opaque(pixels));
    latent = await ask("encode", pixels);
    draw(element("reconstruction"), await ask("decode", latent));
  });
  for (const input of inputs) input.oninput = show;
  await show();
  element("framing").showModal();
  await new Promise((resolve) => element("framing").addEventListener("close", resolve, { once: true }));
  return { use: element("framing").returnValue, latent };
}

// RGBA of pixels with one or three channels.
function opaque(pixels) {
  const rgba = new Uint8ClampedArray((pixels.length / model.channels) * 4).fill(255);
  for (let i = 0; i < rgba.length / 4; i++) {
    for (let j = 0; j < 3; j++) rgba[4 * i + j] = pixels[i * model.channels + (model.channels === 3 ? j : 0)];
  }
  return rgba;
}
