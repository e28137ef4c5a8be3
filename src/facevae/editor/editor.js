// What the page shows, and what its controls do.

const WALK_MILLISECONDS = 3000; // from face to face
const UNDO_STEPS = 200;
const framedByOthers = window !== window.top;

let state; // what is shown
let committed; // the state before the gesture that is under way
const undone = []; // states to go back to, the oldest first
let walking = false;

// A function that runs `work` again and again while it is called, but never twice at once: of the calls that come in
// meanwhile only the last counts.
function latestOnly(work) {
  let running = null;
  let again = false;
  const run = async () => {
    do {
      again = false;
      await work();
    } while (again);
    running = null;
  };
  return () => {
    again = true;
    return (running ??= run());
  };
}

function draw(canvas, rgba) {
  const side = Math.sqrt(rgba.length / 4);
  if (canvas.width !== side) canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(new ImageData(rgba, side, side), 0, 0);
}

const show = latestOnly(async () => draw(element("face"), await ask("decode", latentOf(state))));

const thumbnails = { first: null, second: null }; // the codes of the faces that they show
const showThumbnails = latestOnly(async () => {
  for (const [name, canvas] of [["first", element("first")], ["second", element("second").firstElementChild]]) {
    const face = state[name];
    if (face && thumbnails[name] !== face.code) draw(canvas, await ask("decode", face.values));
    thumbnails[name] = face?.code;
  }
});

const say = (message) => (element("message").textContent = message);
const nameOf = (attribute) => (attribute[0] + attribute.slice(1).toLowerCase()).replaceAll("_", " ");
const strengthText = (strength) => (strength > 0 ? "+" : strength < 0 ? "\u2212" : "") + Math.abs(strength).toFixed(1);

const isOwn = ({ code }) => code.startsWith("~");

function titleOf({ first, second, mix }) {
  const title = isOwn(first) ? "A face of its own" : `Face ${first.code} of ${numFaces()}`;
  if (!second) return title;
  return `${title}, mixed with ${Math.round(100 * mix)} % of ${isOwn(second) ? "another" : `face ${second.code}`}`;
}

function descriptionOf(shown) {
  const edits = Object.entries(shown.strengths).map(([name, strength]) => `${nameOf(name)} ${strengthText(strength)}`);
  return [titleOf(shown), ...edits].join(", ");
}

// Bring the controls in line with the state.
function refresh() {
  show();
  for (const slider of document.querySelectorAll("#attributes input")) setSlider(slider);
  element("mix").value = state.mix;
  fill(element("mix"), 0);
  for (const id of ["mix", "unmix"]) element(id).disabled = !state.second;
  element("second").classList.toggle("empty", !state.second);
  element("reset").disabled = !Object.keys(state.strengths).length;
  element("undo").disabled = !undone.length;
}

function setSlider(slider) {
  const strength = state.strengths[slider.name] ?? 0;
  slider.value = strength;
  slider.ariaValueText = strengthText(strength);
  fill(slider, 0.5);
  const value = slider.nextElementSibling;
  value.textContent = strengthText(strength);
  value.disabled = strength === 0;
}

// Colour the track between the thumb and a point at `origin` of the way.
function fill(slider, origin) {
  const [low, high] = [Number(slider.min), Number(slider.max)];
  const ends = [origin, (slider.valueAsNumber - low) / (high - low)].sort((a, b) => a - b);
  ["--from", "--to"].forEach((name, i) => slider.style.setProperty(name, `${100 * ends[i]}%`));
}

function change(changes) {
  state = { ...state, ...changes };
  refresh();
}

// End a gesture: it can be undone, and the address has its result.
function commit(message) {
  if (state !== committed) undone.push(committed);
  if (undone.length > UNDO_STEPS) undone.shift();
  settle(state, message);
}

function settle(next, message = titleOf(next)) {
  state = committed = next;
  refresh();
  showThumbnails();
  say(message);
  element("face").ariaLabel = descriptionOf(state);
  try {
    history.replaceState(null, "", addressOf(state));
  } catch {
    // some frames have no address of their own; the link's dialog has it all the same
  }
}

function setStrength(attribute, strength) {
  const { [attribute]: _, ...others } = state.strengths;
  change({ strengths: strength ? { ...others, [attribute]: strength } : others });
}

function addSlider(attribute) {
  const row = document.createElement("li");
  const label = Object.assign(document.createElement("label"), { textContent: nameOf(attribute) });
  const slider = Object.assign(document.createElement("input"), { type: "range", name: attribute, id: `edit.${attribute}` });
  Object.assign(slider, { min: -MAX_STRENGTH, max: MAX_STRENGTH, step: 0.1 });
  label.htmlFor = slider.id;
  slider.oninput = () => setStrength(attribute, slider.valueAsNumber);
  slider.onchange = () => commit();
  const value = Object.assign(document.createElement("button"), { className: "value", title: "Reset" });
  value.ariaLabel = `Reset ${nameOf(attribute)}`;
  value.onclick = () => {
    setStrength(attribute, 0);
    slider.focus(); // the button is disabled now
    commit();
  };
  row.append(label, slider, value);
  element("attributes").append(row);
}

// Move from face to face until it is stopped, with the edits kept.
function walk() {
  walking = !walking;
  element("walk").ariaPressed = walking;
  element("walk").textContent = walking ? "Stop" : "Walk";
  if (!walking) return commit();
  say("Walking");
  let [from, to, start] = [mixed(state), anyFace().values, performance.now()];
  const step = (now) => {
    if (!walking) return;
    const share = Math.min(1, Math.max(0, (now - start) / WALK_MILLISECONDS));
    const eased = share * share * (3 - 2 * share);
    change({ first: ownFace(between(from, to, eased)), second: null, mix: 0 });
    if (share === 1) [from, to, start] = [to, anyFace().values, now];
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

function stopWalking() {
  if (walking) walk();
}

function undo() {
  stopWalking();
  if (undone.length) settle(undone.pop(), "Undone");
}

async function takePhotograph(file) {
  if (!file) return;
  stopWalking();
  let chosen;
  try {
    chosen = await framed(file);
  } catch {
    return say("This browser cannot read that file. Choose a JPEG, PNG or WebP image.");
  }
  const face = ownFace(chosen.latent);
  if (chosen.use === "first") state = plain(face);
  if (chosen.use === "second") state = { ...state, second: face, mix: 0.5 };
  if (chosen.use) commit("Your photograph, as the model sees it");
}

async function save() {
  await show();
  const blob = await new Promise((resolve) => element("face").toBlob(resolve));
  if (element("download").href) URL.revokeObjectURL(element("download").href);
  element("download").href = element("picture").src = URL.createObjectURL(blob);
  if (framedByOthers) return element("saving").showModal();
  element("download").click();
  say("Saved as face.png");
}

async function link() {
  stopWalking();
  const isShared = location.protocol.startsWith("http") && !framedByOthers;
  const address = framedByOthers ? addressOf(state) : location.href.split("#")[0] + addressOf(state);
  let copied = "It is copied. ";
  try {
    await navigator.clipboard.writeText(address);
  } catch {
    copied = ""; // not allowed in some frames; the text is selected
  }
  element("address").value = address;
  element("linking-note").textContent = isShared
    ? `${copied}Whoever opens it sees this face.`
    : `${copied}Colleagues with a copy of this page add the part from # on to the address of theirs.`;
  element("linking").showModal();
  element("address").select();
}

const ACTIONS = {
  new() {
    stopWalking();
    state = plain(anyFace());
    commit();
  },
  walk,
  undo,
  save,
  link,
  photograph: () => element("file").click(),
  reset() {
    change({ strengths: {} });
    commit("All edits removed");
  },
  second() {
    stopWalking();
    change({ second: anyFace(), mix: state.second ? state.mix : 0.5 });
    commit();
  },
  unmix() {
    change({ second: null, mix: 0 });
    commit("The second face is removed");
  },
};

function openAddress(address) {
  stopWalking();
  try {
    state = stateOf(address);
    commit();
  } catch (error) {
    say(error.message);
  }
}

async function start() {
  const weights = bytesOf("weights").buffer;
  ({ bank, directions } = await ask("load", { model, kernel: bytesOf("kernel"), weights }));
  Object.keys(directions).forEach(addSlider);
  element("no-attributes").hidden = Object.keys(directions).length > 0;
  for (const [id, action] of Object.entries(ACTIONS)) element(id).onclick = () => action();
  for (const button of document.querySelectorAll("dialog button")) {
    button.onclick = () => button.closest("dialog").close(button.value); // a form would be blocked in a sandbox
  }
  element("mix").oninput = () => change({ mix: element("mix").valueAsNumber });
  element("mix").onchange = () => commit();
  for (const id of ["new", "walk", "photograph", "save", "link", "second"]) element(id).disabled = false;
  element("file").onchange = () => {
    takePhotograph(element("file").files[0]);
    element("file").value = ""; // the same file may be chosen again
  };
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    takePhotograph(event.dataTransfer.files[0]);
  };
  document.onkeydown = (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && !event.shiftKey) {
      event.preventDefault();
      undo();
    }
  };
  const sent = location.hash;
  settle(plain(bankFace(1)));
  if (sent) openAddress(sent);
  undone.length = 0;
  refresh();
  window.onhashchange = () => openAddress(location.hash);
}

element("facts").textContent =
  `${model.imageSize} \u00d7 ${model.imageSize} pixels, ${model.latentDim} dimensions, faces from the ${model.prior} prior`;
start().catch((error) => say(`This browser cannot run the model (${error.message}). Use one from 2023 or later.`));
