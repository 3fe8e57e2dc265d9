// The numbers of the page, and functions to read them.

const page = JSON.parse(document.getElementById("numbers").textContent);
const TYPES = { int8: Int8Array, int16: Int16Array, float32: Float32Array };
const LIMITS = { int8: 127, int16: 32767 };

// Columns know where their units start among all units, and, if they have a W, where its rows do.
let unitCount = 0, rowCount = 0;
page.columns.forEach((column, index) => {
  column.index = index;
  column.start = unitCount;
  unitCount += column.shown;
  if (column.weights) {
    column.firstRow = rowCount;
    column.group = page.columns.slice(0, index).filter((other) => other.weights).length;
    rowCount += column.shown;
  }
});
const columnOfUnit = page.columns.flatMap((column) => Array(column.shown).fill(column.index));

async function inflate(text, type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new TYPES[type](await new Response(stream).arrayBuffer());
}

async function readNumbers() {
  for (const field of Object.values(page.numbers)) {
    field.integers = await inflate(field.integers, field.type);
    field.scales = await inflate(field.scales, "float32");
    const [moments, rows, length] = field.shape;
    Object.assign(field, { rows, length, groups: field.scales.length / moments });
  }
}

function scaleOf(name, moment, group) {
  const field = page.numbers[name];
  return field.scales[moment * field.groups + group];
}

// A number as it was, to 1/127 or 1/32767 of the largest in its group; NaN if it was not finite.
function read(name, moment, group, row, index) {
  const field = page.numbers[name], limit = LIMITS[field.type];
  const integer = field.integers[(moment * field.rows + row) * field.length + index];
  return integer < -limit ? NaN : (integer * scaleOf(name, moment, group)) / limit;
}

// What a unit's map shows in a cell: its value, or the derivative of the loss for the class.
function mapNumber(backward, moment, unit, cell, target) {
  const group = columnOfUnit[unit];
  return backward
    ? read("derivatives", moment, group, unit, target * page.cells ** 2 + cell)
    : read("values", moment, group, unit, cell);
}

// The same at the chosen point: a training example, or a cell of the plane.
function pointNumber(backward, moment, unit, point, target) {
  if (point.example === undefined) return mapNumber(backward, moment, unit, point.cell, target);
  const name = backward ? "example_derivatives" : "example_values";
  return read(name, moment, columnOfUnit[unit], unit, point.example);
}

// W[i, j] of a layer or its derivative; b[i] with j = "b".
function weight(backward, moment, column, i, j) {
  const name = backward ? "weight_grads" : "weights";
  const index = j === "b" ? page.numbers[name].length - 1 : j;
  return read(name, moment, column.group, column.firstRow + i, index);
}

function placeOfCell(cell, cells) {
  const [[left, bottom], [right, top]] = page.corners;
  return [
    left + ((right - left) * ((cell % cells) + 0.5)) / cells,
    bottom + ((top - bottom) * (Math.floor(cell / cells) + 0.5)) / cells,
  ];
}

// The class whose loss is smallest, at x and y from 0 to 1 of the plane, between the cells' centres.
function decide(moment, x, y) {
  const cells = page.decisionCells, at = (t) => Math.min(Math.max(t * cells - 0.5, 0), cells - 1);
  const column = Math.min(Math.floor(at(x)), cells - 2), row = Math.min(Math.floor(at(y)), cells - 2);
  const right = at(x) - column, up = at(y) - row;
  let best = 0, smallest = Infinity;
  for (let target = 0; target < page.classes.length; target++) {
    const loss = (i, j) => read("class_losses", moment, 0, target, (row + i) * cells + column + j);
    const low = loss(0, 0) * (1 - right) + loss(0, 1) * right;
    const value = low * (1 - up) + (loss(1, 0) * (1 - right) + loss(1, 1) * right) * up;
    if (value < smallest) [best, smallest] = [target, value];
  }
  return best;
}

function format(number, digits = 3) {
  if (number === null || Number.isNaN(number)) return "not finite";
  const size = Math.abs(number);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5)
    ? number.toExponential(digits - 1)
    : Number(number.toPrecision(digits)).toString();
  return text.replace("-", "−").replace("e−", "e-").replace("e+", "e");
}
