// What the page shows, and what the user does to it.

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
const layerOf = (column) => `layer ${column.place}, ${column.name}`;
const safe = (text) => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);
const titleOf = (column) => (column.index ? layerOf(column) : "the input x");
let playing = null, flowing = null;

function placeOfPoint() {
  const { example, cell } = state.point;
  return example === undefined ? placeOfCell(cell, page.cells) : page.points[page.examples[example]];
}

function describePoint() {
  if (!state.point) return "Choose a point: its numbers go through the network and back.";
  const [x, y] = placeOfPoint().map((part) => format(part));
  const isExample = state.point.example !== undefined;
  const kind = isExample ? "A training example of class" : "A place of the plane, as if of class";
  return `(${x}, ${y}). ${kind} “${page.classes[state.target]}”.`;
}

function describeMoment() {
  const loss = format(page.losses[state.moment], 3);
  return `epoch ${page.epochs[state.moment]} of ${page.epochs.at(-1)}, loss ${loss}`;
}

function drawLabels() {
  const name = state.backward ? "dW" : "W";
  page.columns.forEach((column, index) => {
    element("names").children[index].style.width = `${pitch}px`;
    element("names").children[index].setAttribute("aria-pressed", index === state.column);
    const scale = element("scales").children[index];
    scale.style.width = `${pitch}px`;
    const lines = [`±${format(scaleOfColumn(state.backward, state.moment, index), 2)}`];
    const numbers = state.backward ? "weight_grads" : "weights";
    if (column.weights) lines.push(`${name} ±${format(scaleOf(numbers, state.moment, column.group), 2)}`);
    if (column.width > column.shown) lines.push(`${column.shown} of ${column.width} units`);
    scale.innerHTML = lines.join("<br>");
  });
  const lines = state.backward
    ? `dW, the derivative by each weight of the loss of all ${page.numPoints} training points`
    : "the weights W";
  const where = state.shared ? "the numbers" : "each column\u2019s number";
  element("legend").innerHTML =
    `<span>−<i></i>+ to ${where} below; half as deep at a quarter of it.</span>` +
    `<span>Lines: ${lines}; colour by sign, width by size.</span>`;
  element("target-label").hidden = !state.backward && !state.point;
  element("target").disabled = state.point?.example !== undefined;
  element("target").value = state.target;
  element("forward").setAttribute("aria-pressed", !state.backward);
  element("backward").setAttribute("aria-pressed", state.backward);
  element("shared").checked = state.shared;
  element("moment").value = state.moment;
  element("moment").setAttribute("aria-valuetext", describeMoment());
  element("epoch").textContent = describeMoment();
  const accuracy = `${(100 * page.accuracies[state.moment]).toFixed(1)} %`;
  const drawn = page.points.length;
  element("classes").innerHTML = page.classes.map((name, label) =>
    `<b style="color:${classColor(label)}">${SHAPES[shapeOf(label)]}</b> ${safe(name)}`).join(" &nbsp;") +
    " &nbsp;✕ wrong &nbsp;Large: examples" +
    (drawn < page.numPoints ? `. Drawn are the first ${drawn} of ${page.numPoints} points.` : "");
  element("plane-text").textContent = `${accuracy} of the training points are right. ${describePoint()}`;
  planeCanvas.setAttribute("aria-label", `The plane of the inputs. ${element("plane-text").textContent}`);
  unitsCanvas.setAttribute("aria-label",
    `${page.columns.length} columns of units: ${page.columns.map((column) => `${column.width} of ${titleOf(column)}`).join("; ")}. ` +
    `Shown are ${state.backward ? "derivatives of the loss" : "values"} at ${describeMoment()}.`);
}

function drawLayer() {
  const column = page.columns[Math.max(state.column, 1)], others = page.columns.slice(1);
  element("layer-name").textContent = `Layer ${column.place}: ${column.name}`;
  element("formula").textContent = column.formula || "It has no docstring that can be read.";
  element("code").textContent = column.code || "Its source cannot be read.";
  const next = page.columns[column.index + 1];
  const kept = column.keeps.map(([name, shape, bytes]) => {
    const also = name === "y" && next?.keeps.some(([other]) => other === "x");
    const shared = also ? ", the array that the next layer keeps as x" : "";
    return `${name} of shape (${shape.join(", ")}), ${bytes.toLocaleString("en")} bytes${shared}`;
  });
  element("keeps").textContent =
    `Between the two passes over all ${page.numPoints} points it keeps ${kept.join("; ") || "nothing"}.`;
  const at = (norms) => format(norms[state.moment], 2);
  const faint = others.filter((other) => other !== column)
    .map((other) => ({ values: other.dx_norms, stroke: "var(--soft)" }));
  const hasGrads = column.grads_norms.some((norm) => norm !== 0);
  const label = `Norm of dx, now ${at(column.dx_norms)} (solid; other layers grey)` +
    (hasGrads ? `, and of grads, now ${at(column.grads_norms)} (dashed)` : "") +
    ", by the loss of all training points";
  element("norms").innerHTML = curves([
    ...faint,
    { values: column.grads_norms, stroke: "var(--positive)", dashed: true, wide: true },
    { values: column.dx_norms, stroke: "var(--negative)", wide: true },
  ], label) + `<p id="norm-text">${label}.</p>`;
}

const term = (number) => (number < 0 ? `(${format(number)})` : format(number));

// A sum of products, the largest ones first, as text.
function sumOfProducts(pairs, hidden) {
  const sorted = [...pairs].sort((a, b) => Math.abs(b[0] * b[1]) - Math.abs(a[0] * a[1]));
  const few = sorted.slice(0, 4).map(([a, b]) => `${term(a)} · ${term(b)}`).join(" + ");
  const rest = sorted.slice(4).reduce((sum, [a, b]) => sum + a * b, 0);
  const more = sorted.length > 4 ? ` + ${term(rest)} from ${sorted.length - 4} others` : "";
  return few + more + (hidden ? ` + what ${hidden} units add that are not drawn` : "");
}

// How a unit's value comes from the column before, and its derivative from the column after. Sums
// are written out for Linear alone: another layer, or another backward, may not be that sum.
function workedLines(unit) {
  const column = page.columns[columnOfUnit[unit]], number = unit - column.start;
  const before = page.columns[column.index - 1], after = page.columns[column.index + 1];
  const at = (backward, other) => pointNumber(backward, state.moment, other, state.point, state.target);
  const equals = state.point.example === undefined ? "≈" : "=";
  const value = `${equals} ${format(at(false, unit), 4)}`;
  const derivative = `${equals} ${format(at(true, unit), 4)}`;
  const range = (other) => Array.from({ length: other.shown }, (_, index) => index);
  let forward = `${before ? "y" : "x"}[${number}] ${value}`, backward = `dy[${number}] ${derivative}, from the loss`;
  if (column.isLinear) {
    const pairs = range(before).map((j) =>
      [weight(false, state.moment, column, number, j), at(false, before.start + j)]);
    const sum = sumOfProducts(pairs, before.width - before.shown);
    const b = term(weight(false, state.moment, column, number, "b"));
    forward = `y[${number}] = sum over j of W[${number}, j] x[j], + b[${number}] = ${sum} + ${b} ${value}`;
  } else if (before?.width === column.width && !column.weights) {
    forward += `, where x[${number}] ${equals} ${format(at(false, before.start + number), 4)}`;
  }
  if (after?.isLinear) {
    const pairs = range(after).map((i) =>
      [at(true, after.start + i), weight(false, state.moment, after, i, number)]);
    const sum = sumOfProducts(pairs, after.width - after.shown);
    backward = `dx[${number}] = sum over i of dy[i] W[i, ${number}] = ${sum} ${derivative}`;
  } else if (after) {
    backward = `dx[${number}] ${derivative}`;
    if (after.width === column.width && !after.weights) {
      const dy = at(true, after.start + number), ratio = at(true, unit) / dy;
      backward += `, where dy[${number}] ${equals} ${format(dy, 4)}`;
      // Of a place of the plane both numbers are too coarse to be divided.
      if (dy && state.point.example !== undefined) backward += `: ${format(ratio)} times as much`;
    }
  }
  return [[`Forward, ${titleOf(column)}`, forward], [`Backward, ${after ? layerOf(after) : "the loss"}`, backward]];
}

function drawUnit() {
  const unit = state.unit ?? page.columns[Math.max(state.column, 1)].start;
  const column = page.columns[columnOfUnit[unit]], palette = makePalette();
  element("unit-name").textContent = `Unit ${unit - column.start} of ${titleOf(column)}`;
  for (const [id, backward] of [["unit-value", false], ["unit-derivative", true]]) {
    const canvas = element(id), context = fitCanvas(canvas, 150, 150);
    drawMap(context, backward, unit, [0, 0, 150], palette);
    const what = backward
      ? `the derivative of the loss of class “${page.classes[state.target]}” by it`
      : "its value";
    const scale = format(scaleOfColumn(backward, state.moment, column.index), 2);
    canvas.nextElementSibling.textContent = `${what}, to ±${scale}`;
    canvas.setAttribute("aria-label", `Over the plane: ${what}, from −${scale} to ${scale}`);
  }
  element("worked").innerHTML = state.point
    ? workedLines(unit).map(([where, line]) => `<p><b>${safe(where)}:</b> ${line}</p>`).join("")
    : `<p>${describePoint()}</p>`;
  const rows = Array.from({ length: state.point ? column.shown : 0 }, (_, index) => {
    const numbers = [false, true].map((backward) =>
      pointNumber(backward, state.moment, column.start + index, state.point, state.target));
    return `<tr><td>${index}</td>${numbers.map((n) => `<td>${format(n, 4)}</td>`).join("")}</tr>`;
  });
  element("table").innerHTML = rows.length
    ? `<table><tr><th>unit</th><th>value</th><th>derivative</th></tr>${rows.join("")}</table>`
    : describePoint();
}

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
  flowing = setInterval(() => {
    if (step === 2 * count) {
      clearInterval(flowing);
      change({ flow: null });
      return;
    }
    const backward = step >= count, reached = backward ? 2 * count - 1 - step : step;
    const columns = [...Array(count).keys()];
    const flow = new Set(columns.filter((index) => (backward ? index >= reached : index <= reached)));
    change({ point, flow, backward });
    step += 1;
  }, 170);
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
  if (page.columns[number("layer")] && number("layer")) changes.column = number("layer");
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
  element("precision").textContent =
    `Maps have ${page.cells} by ${page.cells} cells and are exact to 1/127 of the largest number of ` +
    "their column, the weights to 1/32767. The numbers of training examples are those of the network.";
  readLink();
}

start();
