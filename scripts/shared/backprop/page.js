// The state of the page, and what the user does to it.

const state = {
  moment: 0, // the number of an epoch in page.epochs
  backward: false,
  target: 0, // the class for which the derivatives are
  shared: false, // one scale for all columns
  point: null, // {example} or {cell}
  column: 1, // the layer that is described
  unit: null,
  kept: false, // whether a click keeps column and unit while the pointer goes elsewhere
  flow: null, // the columns that the numbers of the point have reached, or null: all
};
const element = (id) => document.getElementById(id);
let playing = null, flowing = null;

function draw() {
  drawNetwork();
  drawPlane();
  drawLabels();
  drawLayer();
  drawUnit();
  const label = `The loss of the training points over the epochs, now ${describeMoment()}`;
  element("loss").innerHTML = curves([{ values: page.losses, stroke: "var(--accent)", wide: true }], label);
}

let isDue = false;
function change(changes) {
  Object.assign(state, changes);
  if (state.point?.example !== undefined) {
    state.target = page.labels[page.examples[state.point.example]];
  }
  if (!isDue) requestAnimationFrame(() => {
    isDue = false;
    draw();
  });
  isDue = true;
}

function play() {
  if (playing) clearInterval(playing);
  else if (state.moment === page.epochs.length - 1) change({ moment: 0 });
  playing = playing ? null : setInterval(() => {
    if (state.moment === page.epochs.length - 1) play();
    else change({ moment: state.moment + 1 });
  }, 220);
  element("play").textContent = playing ? "❚❚" : "▶";
  element("play").setAttribute("aria-label", playing ? "pause" : "play the training");
  element("worked").setAttribute("aria-live", playing ? "off" : "polite"); // not at every epoch
}

// Let the numbers of a point run through the columns, and the derivatives back.
function choose(point) {
  clearInterval(flowing);
  if (!point || matchMedia("(prefers-reduced-motion: reduce)").matches) {
    change({ point, flow: null });
    return;
  }
  const count = page.columns.length;
  let step = 0;
  const flow = () => {
    if (step === 2 * count) {
      clearInterval(flowing);
      change({ flow: null });
      return;
    }
    const backward = step >= count, reached = backward ? 2 * count - 1 - step : step;
    const columns = [...Array(count).keys()];
    const isReached = (index) => (backward ? index >= reached : index <= reached);
    change({ point, flow: new Set(columns.filter(isReached)), backward });
    step += 1;
  };
  flowing = setInterval(flow, 170);
  flow(); // at once: a second press of e then goes on from this point
}

function turn(backward) {
  clearInterval(flowing); // which would turn it again
  change({ backward, flow: null });
}

function chooseNext(by) {
  const count = page.examples.length, now = state.point?.example ?? (by > 0 ? -1 : 0);
  choose({ example: (now + by + count) % count });
}

function moveUnit(columns, units) {
  const unit = state.unit ?? page.columns[state.column].start, column = page.columns[columnOfUnit[unit]];
  const index = Math.min(Math.max(column.index + columns, 0), page.columns.length - 1);
  const next = page.columns[index], row = unit - column.start + units, scroll = element("scroll");
  const least = (index + 1) * pitch - scroll.clientWidth; // from here its right side can be seen
  scroll.scrollLeft = Math.min(Math.max(scroll.scrollLeft, least), index * pitch);
  change({ unit: next.start + Math.min(Math.max(row, 0), next.shown - 1), column: index });
}

// Choose the cell beside the chosen point, or beside the middle of the plane.
function moveCell(columns, rows) {
  const { cells } = page, [[left, bottom], [right, top]] = page.corners;
  const [x, y] = state.point ? placeOfPoint() : [(left + right) / 2, (bottom + top) / 2];
  const within = (number) => Math.min(Math.max(Math.floor(number), 0), cells - 1);
  const column = within((cells * (x - left)) / (right - left) + columns);
  const row = within((cells * (y - bottom)) / (top - bottom) - rows);
  clearInterval(flowing);
  change({ point: { cell: row * cells + column }, flow: null });
}

function letGo() {
  state.kept = false;
  choose(null);
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
function onKey(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target === element("target") && key !== "Escape") return; // letters choose a class there
  if (target === unitsCanvas && ARROWS[key]) moveUnit(...ARROWS[key]);
  else if (target === planeCanvas && ARROWS[key]) moveCell(...ARROWS[key]);
  else if (key === " " && !target.matches("button, summary, [type=checkbox]")) play();
  else if (key === ",") change({ moment: Math.max(state.moment - 1, 0) });
  else if (key === ".") change({ moment: Math.min(state.moment + 1, page.epochs.length - 1) });
  else if (key === "f") turn(false);
  else if (key === "b") turn(true);
  else if (key === "e") chooseNext(1);
  else if (key === "Escape") letGo();
  else return;
  event.preventDefault();
}

// A link such as backprop.html#epoch=20&backward&example=3 opens the page there.
function readLink() {
  const link = new URLSearchParams(location.hash.slice(1)), number = (name) => Number(link.get(name));
  clearInterval(flowing);
  const changes = { target: 0, point: null, column: 1, unit: null, kept: false, flow: null };
  changes.backward = link.has("backward");
  changes.shared = link.has("shared");
  const latest = page.epochs.filter((epoch) => epoch <= number("epoch")).length - 1;
  changes.moment = link.has("epoch") ? Math.max(latest, 0) : page.epochs.length - 1;
  if (page.classes[number("class")]) changes.target = number("class");
  const layer = page.columns.find((column) => column.place && column.place === link.get("layer"));
  if (layer) changes.column = layer.index;
  if (link.has("example") && number("example") in page.examples) {
    changes.point = { example: number("example") };
  }
  change(changes);
}

async function start() {
  await readNumbers();
  element("names").innerHTML = page.columns.map(() => "<button></button>").join("");
  element("scales").innerHTML = page.columns.map(() => "<span></span>").join("");
  page.columns.forEach((column, index) => {
    const button = element("names").children[index];
    button.textContent = index ? `${column.place} ${column.name}` : "x";
    for (const kind of ["click", "focus", "pointerenter"]) {
      button.addEventListener(kind, () => {
        if (kind === "pointerenter" && state.kept) return;
        const isKept = state.kept && state.column === index && state.unit === null;
        change({ column: index, unit: null, kept: kind === "click" && !isKept });
      });
    }
  });
  element("target").innerHTML = page.classes.map((_, index) => `<option value="${index}">`).join("");
  page.classes.forEach((name, index) => (element("target").options[index].text = name));
  element("target").addEventListener("change", () => change({ target: Number(element("target").value) }));
  element("moment").max = page.epochs.length - 1;
  element("moment").addEventListener("input", () => change({ moment: Number(element("moment").value) }));
  element("forward").addEventListener("click", () => turn(false));
  element("backward").addEventListener("click", () => turn(true));
  element("shared").addEventListener("change", () => change({ shared: element("shared").checked }));
  element("play").addEventListener("click", play);
  element("previous").addEventListener("click", () => chooseNext(-1));
  element("next").addEventListener("click", () => chooseNext(1));
  element("clear").addEventListener("click", () => choose(null));
  unitsCanvas.addEventListener("pointermove", (event) => {
    const unit = unitAt(event.offsetX, event.offsetY);
    if (unit !== null && unit !== state.unit && !state.kept) change({ unit, column: columnOfUnit[unit] });
  });
  unitsCanvas.addEventListener("click", (event) => {
    const unit = unitAt(event.offsetX, event.offsetY);
    if (unit === null) return;
    change({ unit, column: columnOfUnit[unit], kept: !(state.kept && unit === state.unit) });
  });
  planeCanvas.addEventListener("click", (event) => choose(pointAt(event.offsetX, event.offsetY)));
  document.addEventListener("keydown", onKey);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", draw);
  }
  addEventListener("beforeprint", draw);
  addEventListener("resize", () => change({}));
  addEventListener("hashchange", readLink);
  const { epochs, cells } = page;
  element("precision").textContent =
    `There are ${epochs.length} moments, from epoch ${epochs[0]} to ${epochs.at(-1)}. Maps have ` +
    `${cells} by ${cells} cells of 8 bits, which are finer for small numbers. The numbers of ` +
    "training examples have four digits.";
  readLink();
}

start();
