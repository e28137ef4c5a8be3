// The network, in a web worker: latents to pixels and pixels to latents.
//
// Maps lie in WebAssembly's memory as float32 [row][column][channel]. Their channels are padded to a multiple of
// eight, and a border of zeros as wide as the next convolution needs surrounds them.
"use strict";

const BLOCK = 8; // channels that gatherMatmul computes at once
const FLOAT = 4; // bytes
const PAGE = 65536; // bytes; WebAssembly's memory grows by pages

const memory = new WebAssembly.Memory({ initial: 1 });
let used = 0; // bytes of the memory
let gatherMatmul; // from gather_matmul.wat
let tensors; // the page's weights
let network; // {decode: ..., encode: ...}, each {input, steps, output}

const floats = (address, length) => new Float32Array(memory.buffer, address, length);

function allocate(bytes) {
  const address = used;
  used += Math.ceil(bytes / 16) * 16;
  const missing = used - memory.buffer.byteLength;
  if (missing > 0) memory.grow(Math.ceil(missing / PAGE));
  return address;
}

function copied(array) {
  const address = allocate(array.byteLength);
  new array.constructor(memory.buffer, address, array.length).set(array);
  return address;
}

// The value of each of the 65536 float16 numbers: sign, five bits of exponent, ten of fraction. No infinities here.
const HALF = Float32Array.from({ length: 65536 }, (_, bits) => {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
  return bits & 32768 ? -size : size;
});

function tensor({ type, offset, length }) {
  if (type === "float32") return new Float32Array(tensors, offset, length);
  return Float32Array.from(new Uint16Array(tensors, offset, length), (bits) => HALF[bits]);
}

// A map of size x size pixels, with a border of `pad` pixels.
function newMap(size, channels, pad) {
  const side = size + 2 * pad;
  const map = { size, channels, address: allocate(side * side * channels * FLOAT) };
  map.pixel = (row, column) => map.address + ((row + pad) * side + column + pad) * channels * FLOAT;
  return map;
}

// The parts of a convolution: each computes the output pixels (every * row + row0, every * column + column0) from the
// input pixels (step * row + tap.row, step * column + tap.column). A convolution has one part. A transposed one has
// stride * stride, in each of which an output pixel meets the same few weights of the kernel.
function partsOf({ transposed, kernel, stride, padding }) {
  const range = (length) => [...Array(length).keys()];
  const pairs = (list) => list.flatMap((row) => list.map((column) => [row, column]));
  if (!transposed) {
    const taps = pairs(range(kernel)).map(([y, x]) => ({ y, x, row: y - padding, column: x - padding }));
    return [{ every: 1, row0: 0, column0: 0, step: stride, taps }];
  }
  return pairs(range(stride)).map(([row0, column0]) => {
    const taps = pairs(range(kernel))
      .map(([y, x]) => ({ y, x, row: (row0 + padding - y) / stride, column: (column0 + padding - x) / stride }))
      .filter(({ row, column }) => Number.isInteger(row) && Number.isInteger(column));
    return { every: stride, row0, column0, step: 1, taps };
  });
}

// How far an operation reads beyond the edges of its input of size x size pixels.
function reach(operation, size) {
  if (operation?.type !== "convolution") return 0;
  const beyond = partsOf(operation).flatMap(({ step, taps }) =>
    taps.flatMap(({ row }) => [-row, operation.transposed ? row : step * (size / step - 1) + row - (size - 1)]),
  );
  return Math.max(0, ...beyond);
}

// Each operation appends to `steps` what it does to the map `input`, and returns the map of its results.
const OPERATIONS = {
  convolution(operation, input, outputSize, pad, steps) {
    const { kernel, transposed, stride, slope } = operation;
    const scale = tensor(operation.scale);
    const weights = tensor(operation.weights); // [kernel row][kernel column][input channel][output channel]
    const bias = copied(tensor(operation.bias));
    const output = newMap(outputSize, scale.length, pad);
    for (const { every, row0, column0, step, taps } of partsOf(operation)) {
      const packed = new Float32Array(taps.length * input.channels * output.channels);
      let next = 0;
      for (let block = 0; block < output.channels; block += BLOCK) {
        for (const { y, x } of taps) {
          for (let channel = 0; channel < input.channels; channel++, next += BLOCK) {
            const start = ((y * kernel + x) * input.channels + channel) * output.channels + block;
            for (let i = 0; i < BLOCK; i++) packed[next + i] = weights[start + i] * scale[block + i];
          }
        }
      }
      const count = transposed ? input.size : input.size / stride; // rows, and columns, of the part
      const last = count * count - 1;
      const addresses = []; // four of inputs, four of outputs, and so on; the last pixel fills up
      for (let first = 0; first <= last; first += 4) {
        const pixels = [0, 1, 2, 3].map((i) => Math.min(first + i, last));
        const places = pixels.map((i) => [Math.floor(i / count), i % count]);
        for (const [row, column] of places) addresses.push(input.pixel(step * row, step * column));
        for (const [row, column] of places) addresses.push(output.pixel(every * row + row0, every * column + column0));
      }
      const offsets = taps.map(({ row, column }) => input.pixel(row, column) - input.pixel(0, 0));
      const table = (list) => {
        const address = copied(Int32Array.from(list));
        return [address, address + 4 * list.length];
      };
      const sizes = [input.channels * FLOAT, copied(packed), bias, output.channels * FLOAT];
      const call = [...table(addresses), ...table(offsets), ...sizes, slope];
      steps.push(() => gatherMatmul(...call));
    }
    return output;
  },

  // Batch normalisation that no convolution precedes, or none.
  affine(operation, input, outputSize, pad, steps) {
    const output = newMap(outputSize, input.channels, pad);
    const [scale, shift] = [tensor(operation.scale), tensor(operation.shift)];
    steps.push(() => scaleAndShift(input, output, scale, shift, operation.slope));
    return output;
  },

  groupNormalization(operation, input, outputSize, pad, steps) {
    const output = newMap(outputSize, input.channels, pad);
    const [scale, shift] = [tensor(operation.scale), tensor(operation.shift)];
    const width = operation.channels / operation.groups; // of a group
    steps.push(() => {
      const [newScale, newShift] = [new Float32Array(input.channels), new Float32Array(input.channels)];
      for (let group = 0; group < operation.groups; group++) {
        let [sum, squares] = [0, 0];
        eachPixel(input, (values) => {
          for (let i = group * width; i < (group + 1) * width; i++) sum += values[i];
        });
        const mean = sum / (width * input.size ** 2);
        eachPixel(input, (values) => {
          for (let i = group * width; i < (group + 1) * width; i++) squares += (values[i] - mean) ** 2;
        });
        const inverse = 1 / Math.sqrt(squares / (width * input.size ** 2) + operation.epsilon);
        for (let i = group * width; i < (group + 1) * width; i++) {
          newScale[i] = scale[i] * inverse;
          newShift[i] = shift[i] - mean * newScale[i];
        }
      }
      scaleAndShift(input, output, newScale, newShift, operation.slope);
    });
    return output;
  },

  residual(operation, input, outputSize, pad, steps) {
    const change = compile(operation.change, input, steps);
    const output = newMap(outputSize, input.channels, pad);
    steps.push(() =>
      eachPixel(output, (values, row, column) => {
        const [before, added] = [input, change].map((map) => floats(map.pixel(row, column), input.channels));
        for (let i = 0; i < values.length; i++) values[i] = before[i] + added[i];
      }),
    );
    return output;
  },
};

function eachPixel(map, visit) {
  for (let row = 0; row < map.size; row++) {
    for (let column = 0; column < map.size; column++) visit(floats(map.pixel(row, column), map.channels), row, column);
  }
}

function scaleAndShift(input, output, scale, shift, slope) {
  eachPixel(output, (values, row, column) => {
    const before = floats(input.pixel(row, column), input.channels);
    for (let i = 0; i < values.length; i++) {
      const value = before[i] * scale[i] + shift[i];
      values[i] = value > 0 ? value : slope * value;
    }
  });
}

function compile(operations, input, steps) {
  let map = input;
  operations.forEach((operation, i) => {
    const { type, transposed, stride } = operation;
    const size = type !== "convolution" ? map.size : transposed ? map.size * stride : map.size / stride;
    map = OPERATIONS[type](operation, map, size, reach(operations[i + 1], size), steps);
  });
  return map;
}

function built(operations, size, channels) {
  const padded = Math.ceil(channels / BLOCK) * BLOCK;
  const input = newMap(size, padded, reach(operations[0], size));
  const steps = [];
  const output = compile(operations, input, steps);
  return { input, output, run: () => steps.forEach((step) => step()) };
}

// Latent (latentDim) to RGBA, imageSize x imageSize pixels.
function decode(latent) {
  const { input, output, run } = network.decode;
  floats(input.address, input.channels).set([...latent, 1]); // the constant's weights are the bias
  run();
  const pixels = new Uint8ClampedArray(output.size ** 2 * 4);
  let next = 0;
  eachPixel(output, (logits) => {
    for (let i = 0; i < 3; i++) pixels[next++] = 255 / (1 + Math.exp(-logits[network.channels === 1 ? 0 : i]));
    pixels[next++] = 255;
  });
  return pixels;
}

// Intensities from 0 to 255, (imageSize, imageSize, channels), to the mean of the latent.
function encode(pixels) {
  const { input, output, run } = network.encode;
  let next = 0;
  eachPixel(input, (values) => {
    for (let i = 0; i < network.channels; i++) values[i] = pixels[next++] / 255;
  });
  run();
  return floats(output.address, network.latentDim).slice();
}

// Build the network; give back the faces of the bank and the directions.
function load({ model, kernel, weights }) {
  gatherMatmul = new WebAssembly.Instance(new WebAssembly.Module(kernel), { page: { memory } }).exports.gatherMatmul;
  tensors = weights;
  const { imageSize, channels, latentDim } = model;
  network = {
    channels,
    latentDim,
    decode: built(model.decoder, 1, latentDim + 1),
    encode: built(model.encoder, imageSize, channels),
  };
  const directions = Object.fromEntries(model.directions.map(({ attribute, values }) => [attribute, tensor(values)]));
  return { bank: tensor(model.faces), directions };
}

onmessage = ({ data: { task, input } }) => {
  try {
    postMessage({ output: { load, decode, encode }[task](input) });
  } catch (error) {
    postMessage({ error: String(error) });
  }
};
