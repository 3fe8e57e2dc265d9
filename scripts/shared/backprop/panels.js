// The words and numbers around the network: legends, the layer, the unit, the chosen point.

const layerOf = (column) => `layer ${column.place}, ${column.name}`;
const safe = (text) => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);
const titleOf = (column) => (column.index ? layerOf(column) : "the input x");

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
    if (column.weights) lines.push(`${name} ±${format(scaleOfLines(column), 2)}`);
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
    .map((other) => ({ values: other.dxNorms, stroke: "var(--soft)" }));
  const hasGrads = column.gradsNorms.some((norm) => norm !== 0);
  const label = `Norm of dx, now ${at(column.dxNorms)} (solid; other layers grey)` +
    (hasGrads ? `, and of grads, now ${at(column.gradsNorms)} (dashed)` : "") +
    ", by the loss of all training points";
  element("norms").innerHTML = curves([
    ...faint,
    { values: column.gradsNorms, stroke: "var(--positive)", dashed: true, wide: true },
    { values: column.dxNorms, stroke: "var(--negative)", wide: true },
  ], label) + `<p id="norm-text">${label}.</p>`;
}

const term = (number) => (number < 0 ? `(${format(number)})` : format(number));

// A sum of products as text: the four largest in their order, then the sum of the others.
function sumOfProducts(pairs, hidden) {
  const sizes = pairs.map(([a, b]) => Math.abs(a * b));
  const largest = [...pairs.keys()].sort((i, j) => sizes[j] - sizes[i]).slice(0, 4);
  const isLarge = (pair) => largest.some((index) => pairs[index] === pair);
  const terms = pairs.filter(isLarge).map(([a, b]) => `${term(a)} · ${term(b)}`);
  const others = pairs.filter((pair) => !isLarge(pair));
  const rest = others.reduce((sum, [a, b]) => sum + a * b, 0);
  if (others.length) terms.push(`${term(rest)} from ${others.length} others`);
  if (hidden) terms.push(`what the units add that are not drawn (${hidden})`);
  return terms.join(" + ");
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
    const name = column.hasBias ? `, + b[${number}]` : "";
    const b = column.hasBias ? ` + ${term(weight(false, state.moment, column, number, "b"))}` : "";
    forward = `y[${number}] = sum over j of W[${number}, j] x[j]${name} = ${sum}${b} ${value}`;
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
