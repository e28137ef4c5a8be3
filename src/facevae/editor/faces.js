// The engine's other end, and what the page knows of a face: its latent, its edits, its address, and how to undo.
"use strict";

const element = (id) => document.getElementById(id);
const model = JSON.parse(element("model").textContent);
const MAX_STRENGTH = 3; // of a slider, either way; 1 leads from the average face without an attribute to that with it

function bytesOf(id) {
  const text = atob(element(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  element(id).remove();
  return bytes;
}

// Let the worker do a task: load, decode or encode. The promise is of its output.
const ask = (() => {
  const source = new Blob([element("engine").textContent], { type: "text/javascript" });
  const worker = new Worker(URL.createObjectURL(source)); // a blob, since the page must be one file
  const waiting = [];
  worker.onmessage = ({ data: { output, error } }) => {
    const { resolve, reject } = waiting.shift();
    if (error) reject(new Error(error));
    else resolve(output);
  };
  return (task, input) =>
    new Promise((resolve, reject) => {
      waiting.push({ resolve, reject });
      worker.postMessage({ task, input });
    });
})();

// A latent is {code, values}: the code stands for it in addresses. A face from the bank has its number as its code,
// counted from one; any other face has its values.
let bank; // float32 [face][dimension]
let directions; // by attribute, float32 [dimension]

const numFaces = () => bank.length / model.latentDim;

function bankFace(number) {
  const start = (number - 1) * model.latentDim;
  return { code: String(number), values: bank.subarray(start, start + model.latentDim) };
}

const anyFace = () => bankFace(1 + Math.floor(Math.random() * numFaces()));

function ownFace(values) {
  return {
    values,
    get code() {
      const text = btoa(String.fromCharCode(...new Uint8Array(values.buffer)));
      return `~${text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
    },
  };
}

function faceOf(code) {
  if (/^\d+$/.test(code) && code >= 1 && code <= numFaces()) return bankFace(Number(code));
  if (!code.startsWith("~")) return null;
  try {
    const text = atob(code.slice(1).replaceAll("-", "+").replaceAll("_", "/"));
    const values = new Float32Array(Uint8Array.from(text, (character) => character.charCodeAt(0)).buffer);
    return values.length === model.latentDim && values.every(Number.isFinite) ? ownFace(values) : null;
  } catch {
    return null; // not base64, or not whole numbers of float32
  }
}

// A state is never changed, only replaced: the two faces, the share of the second, and the strength of each edit.
const plain = (first) => ({ first, second: null, mix: 0, strengths: {} });

// The point at `share` of the way from one latent to another along an arc about the origin: angle and length change
// evenly. Halfway along the straight line latents are shorter than any face's, and decode to softer pictures.
function between(from, to, share) {
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const [fromLength, toLength] = [Math.sqrt(dot(from, from)), Math.sqrt(dot(to, to))];
  const angle = Math.acos(Math.min(1, Math.max(-1, dot(from, to) / (fromLength * toLength))));
  if (!(Math.sin(angle) > 1e-6)) return from.map((value, i) => value + share * (to[i] - value)); // no arc, or any
  const length = fromLength + share * (toLength - fromLength);
  const [fromShare, toShare] = [(1 - share) * angle, share * angle].map((part) => Math.sin(part) / Math.sin(angle));
  return from.map((value, i) => length * (fromShare * (value / fromLength) + toShare * (to[i] / toLength)));
}

const mixed = ({ first, second, mix }) => (second ? between(first.values, second.values, mix) : first.values);

function latentOf(state) {
  const latent = Float32Array.from(mixed(state));
  for (const [attribute, strength] of Object.entries(state.strengths)) {
    directions[attribute].forEach((value, i) => (latent[i] += strength * value));
  }
  return latent;
}

function addressOf({ first, second, mix, strengths }) {
  const parts = { model: model.fingerprint.slice(0, 8), face: first.code };
  if (second) Object.assign(parts, { second: second.code, mix });
  for (const [attribute, strength] of Object.entries(strengths)) parts[`edit.${attribute}`] = strength;
  return `#${new URLSearchParams(parts)}`;
}

// The state of an address; an error says what is wrong with it.
function stateOf(address) {
  const parts = new URLSearchParams(address.slice(1));
  if (parts.get("model") !== model.fingerprint.slice(0, 8)) throw new Error("The link belongs to another model.");
  const state = plain(faceOf(parts.get("face") ?? ""));
  state.second = parts.has("second") ? faceOf(parts.get("second")) : null;
  state.mix = Number(parts.get("mix") ?? 0);
  for (const [name, text] of parts) {
    if (name.startsWith("edit.")) state.strengths[name.slice(5)] = Number(text);
  }
  const isStrength = ([name, value]) => Object.hasOwn(directions, name) && Math.abs(value) <= MAX_STRENGTH;
  const isWhole = state.first && (state.second || !parts.has("second")) && state.mix >= 0 && state.mix <= 1;
  if (!isWhole || !Object.entries(state.strengths).every(isStrength)) throw new Error("The link is damaged.");
  return state;
}
