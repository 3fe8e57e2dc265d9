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
page.columns.slice(1).forEach((column, index) => {
  column.dxNorms = page.dxNorms.map((norms) => norms[index]);
  column.gradsNorms = page.gradsNorms.map((norms) => norms[index]);
});
const columnOfUnit = page.columns.flatMap((column) => Array(column.shown).fill(column.index));

async function inflate(text, type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new TYPES[type](await new Response(stream).arrayBuffer());
}

async function readNumbers() {
  for (const field of Object.values(page.numbers)) {
    field.data = await inflate(field.data, field.type);
    if (field.scales) field.scales.data = await inflate(field.scales.data, "float32");
  }
}

function stored(field, moment, row, index) {
  const [, rows, length] = field.shape;
  return field.data[(moment * rows + row) * length + index];
}

function scaleOf(name, moment, group) {
  const { data, shape } = page.numbers[name].scales;
  return data[moment * shape[1] + group];
}

// A number as it was, to 1/127 or 1/32767 of the largest in its group; NaN if it was not finite.
// The class Quantized of moments.py says how it is stored.
function read(name, moment, group, row, index) {
  const field = page.numbers[name], limit = LIMITS[field.type];
  const part = stored(field, moment, row, index) / limit;
  return part < -1 ? NaN : part * Math.abs(part) * scaleOf(name, moment, group);
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
  return stored(page.numbers[name], moment, unit, point.example);
}

// W[i, j] of a layer or its derivative; b[i] with j = "b".
function weight(backward, moment, column, i, j) {
  const name = backward ? "weight_grads" : "weights";
  const index = j === "b" ? page.numbers[name].shape[2] - 1 : j;
  return read(name, moment, column.group, column.firstRow + i, index);
}

function placeOfCell(cell, cells) {
  const [[left, bottom], [right, top]] = page.corners;
  return [
    left + ((right - left) * ((cell % cells) + 0.5)) / cells,
    bottom + ((top - bottom) * (Math.floor(cell / cells) + 0.5)) / cells,
  ];
}

function format(number, digits = 3) {
  if (!Number.isFinite(number)) return "not finite";
  const size = Math.abs(number);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5)
    ? number.toExponential(digits - 1)
    : Number(number.toPrecision(digits)).toString();
  return text.replace("-", "−").replace("e−", "e-").replace("e+", "e");
}
