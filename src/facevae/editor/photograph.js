// A photograph of one's own, cropped and resized as the training images were, and framed by hand.

const LARGEST = 1024; // pixels of the shorter side; the browser reduces a larger photograph when it is opened

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

// Resize a stretch of each row, from `start` on and `side` pixels long, to `after` pixels, and transpose: twice is the
// whole resizing. Like Pillow's, the filter also sees pixels beyond the stretch.
function resizedRows({ pixels, length, rows, start, side, after }) {
  const { reach, weight } = side > after ? FILTERS.shrink : FILTERS.enlarge;
  const stretch = Math.max(1, side / after);
  const channels = model.channels;
  const result = new Uint8ClampedArray(after * rows * channels);
  for (let column = 0; column < after; column++) {
    const centre = start + ((column + 0.5) * side) / after;
    const first = Math.max(0, Math.floor(centre - reach * stretch + 0.5));
    const end = Math.min(length, Math.floor(centre + reach * stretch + 0.5));
    const weights = Array.from({ length: end - first }, (_, i) => weight((first + i + 0.5 - centre) / stretch));
    const total = weights.reduce((sum, value) => sum + value, 0);
    for (let row = 0; row < rows; row++) {
      for (let channel = 0; channel < channels; channel++) {
        let sum = 0;
        weights.forEach((value, i) => (sum += value * pixels[(row * length + first + i) * channels + channel]));
        result[(column * rows + row) * channels + channel] = sum / total;
      }
    }
  }
  return result;
}

// The pixels (imageSize, imageSize, channels) that the encoder takes, of a square of a photograph.
function pixelsOf(photograph, { left, top, side }) {
  const after = model.imageSize;
  const margin = side === after ? 0 : Math.ceil(Math.max(2, side / after)); // beyond the square, for the filter
  const [x, y] = [Math.max(0, left - margin), Math.max(0, top - margin)];
  const width = Math.min(photograph.width, left + side + margin) - x;
  const height = Math.min(photograph.height, top + side + margin) - y;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.fillStyle = "white"; // below transparent pixels
  context.fillRect(0, 0, width, height);
  context.drawImage(photograph, -x, -y);
  let pixels = inChannels(context.getImageData(0, 0, width, height).data);
  if (side !== after) {
    pixels = resizedRows({ pixels, length: width, rows: height, start: left - x, side, after });
    pixels = resizedRows({ pixels, length: height, rows: after, start: top - y, side, after });
  }
  return model.binarization === "none" ? pixels : pixels.map((value) => (value < 128 ? 0 : 255));
}

// RGBA to the model's channels: RGB, or grey as Pillow computes it.
function inChannels(rgba) {
  const pixels = new Uint8ClampedArray((rgba.length / 4) * model.channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const [red, green, blue] = [rgba[from], rgba[from + 1], rgba[from + 2]];
    if (model.channels === 1) pixels[to++] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16;
    else for (const value of [red, green, blue]) pixels[to++] = value;
  }
  return pixels;
}

function squareOf(photograph) {
  const [zoom, across, down] = ["zoom", "across", "down"].map((id) => element(id).valueAsNumber);
  const side = Math.max(1, Math.round(Math.min(photograph.width, photograph.height) / zoom));
  const [left, top] = [Math.floor(across * (photograph.width - side)), Math.floor(down * (photograph.height - side))];
  return { left, top, side };
}

async function opened(file) {
  const photograph = await createImageBitmap(file);
  const shorter = Math.min(photograph.width, photograph.height);
  const scale = LARGEST / shorter;
  if (scale >= 1) return photograph;
  const resizeWidth = Math.round(scale * photograph.width);
  return createImageBitmap(photograph, { resizeWidth, resizeQuality: "high" });
}

// Let the user frame a photograph. The promise is of {use, latent}, where `use` is "first", "second" or "".
async function framed(file) {
  const photograph = await opened(file);
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
