// The network: a canvas with a column of units for x and for each layer, and lines for weights.

const unitsCanvas = document.getElementById("units");
const NARROWEST = 60, ROOM_FOR_NUMBERS = 28, LARGEST_TILE = 44;
const HEIGHT = Math.min(590, (LARGEST_TILE + 8) * (Math.max(...page.columns.map((column) => column.shown)) + 1));
let pitch = NARROWEST;

// The square of a unit: left, top and side.
function squareOf(unit) {
  const column = page.columns[columnOfUnit[unit]];
  const step = Math.min(LARGEST_TILE + 8, (HEIGHT - 6) / column.shown);
  const side = Math.min(LARGEST_TILE, step - 3, pitch - 16);
  const middle = HEIGHT / 2 + (unit - column.start - (column.shown - 1) / 2) * step;
  const left = Math.max((pitch - side) / 2 - 12, 1); // numbers are written on the right
  return [column.index * pitch + left, middle - side / 2, side];
}

function unitAt(x, y) {
  const column = page.columns[Math.floor(x / pitch)];
  if (!column) return null;
  const units = Array.from({ length: column.shown }, (_, index) => column.start + index);
  const distance = (unit) => {
    const [, top, side] = squareOf(unit);
    return Math.abs(top + side / 2 - y);
  };
  return units.reduce((best, unit) => (distance(unit) < distance(best) ? unit : best));
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

// How deep the colour of a number is, from 0 to 1: by its square root, so that small ones show.
function depth(number, scale) {
  return scale > 0 ? Math.sqrt(Math.min(Math.abs(number) / scale, 1)) : 0;
}

// A function from numbers to colours: the ground for 0, towards one of two colours by sign.
function makePalette() {
  const [ground, positive, negative, soft] =
    ["--ground", "--positive", "--negative", "--soft"].map((name) => channels(color(name)));
  return (number, scale) => {
    if (Number.isNaN(number)) return soft;
    const part = depth(number, scale);
    const end = number < 0 ? negative : positive;
    return ground.map((from, index) => from + (end[index] - from) * part);
  };
}

// The size of the deepest colour in a column.
function scaleOfColumn(backward, moment, index) {
  const name = backward ? "derivatives" : "values";
  if (!state.shared) return scaleOf(name, moment, index);
  return Math.max(...page.columns.map((column) => scaleOf(name, moment, column.index)));
}

// The size of the widest line of a layer with weights.
function scaleOfLines(column) {
  const name = state.backward ? "weight_grads" : "weights";
  const groups = page.columns.filter((other) => other.weights && (state.shared || other === column));
  return Math.max(...groups.map((other) => scaleOf(name, state.moment, other.group)));
}

function fitCanvas(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

// Cells are counted from below, pixels from above.
const pixelOfCell = (cell, cells) => (cells - 1 - Math.floor(cell / cells)) * cells + (cell % cells);

// Draw a unit's map into a square.
function drawMap(context, backward, unit, [left, top, side], palette) {
  const { cells } = page, scratch = document.createElement("canvas");
  scratch.width = scratch.height = cells;
  const pixels = scratch.getContext("2d"), image = pixels.createImageData(cells, cells);
  const scale = scaleOfColumn(backward, state.moment, columnOfUnit[unit]);
  for (let cell = 0; cell < cells * cells; cell++) {
    const number = mapNumber(backward, state.moment, unit, cell, state.target);
    image.data.set([...palette(number, scale), 255], 4 * pixelOfCell(cell, cells));
  }
  pixels.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = true;
  context.drawImage(scratch, left, top, side, side);
}

function drawEdges(context, column, palette) {
  const before = page.columns[column.index - 1];
  const middle = (unit) => {
    const [left, top, side] = squareOf(unit);
    return [left, left + side, top + side / 2];
  };
  const line = (from, to, style, width) => {
    const [, x, y] = middle(from), [right, , bottom] = middle(to);
    context.strokeStyle = style;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x, y);
    context.bezierCurveTo((x + right) / 2, y, (x + right) / 2, bottom, right, bottom);
    context.stroke();
  };
  if (!column.weights) {
    for (let i = 0; column.width === before.width && i < column.shown; i++) {
      line(before.start + i, column.start + i, color("--line"), 1);
    }
    return;
  }
  const scale = scaleOfLines(column);
  for (let i = 0; i < column.shown; i++) {
    for (let j = 0; j < before.shown; j++) {
      const from = before.start + j, to = column.start + i;
      const number = weight(state.backward, state.moment, column, i, j);
      const part = scale > 0 ? Math.min(Math.abs(number) / scale, 1) : 0;
      const chosen = state.unit === from || state.unit === to;
      if (!chosen && part < 0.06) continue;
      context.globalAlpha = chosen ? 1 : 0.75 * part;
      line(from, to, `rgb(${palette(number < 0 ? -1 : 1, 1)})`, (chosen ? 0.6 : 0.2) + 2.6 * part);
      context.globalAlpha = 1;
    }
  }
}

// Write the number of the chosen point beside a unit.
function drawNumber(context, unit, palette) {
  const [left, top, side] = squareOf(unit);
  const number = pointNumber(state.backward, state.moment, unit, state.point, state.target);
  const scale = scaleOfColumn(state.backward, state.moment, columnOfUnit[unit]);
  context.fillStyle = `rgb(${palette(number, scale)})`;
  context.fillRect(left, top, side, side);
  context.font = "10.5px system-ui, sans-serif";
  context.textBaseline = "middle";
  const text = format(number, 2), middle = top + side / 2;
  context.fillStyle = color("--ground"); // a line that ends at the number would look like a minus
  context.fillRect(left + side, middle - 7, context.measureText(text).width + 5, 14);
  context.fillStyle = color("--ink");
  context.fillText(text, left + side + 3, middle + 0.5);
}

function drawNetwork() {
  const scroll = document.getElementById("scroll");
  const narrowest = matchMedia("print").matches ? 40 : NARROWEST; // paper does not scroll
  const least = narrowest + (state.point ? ROOM_FOR_NUMBERS : 0);
  pitch = Math.max(least, Math.floor(scroll.clientWidth / page.columns.length));
  const width = pitch * page.columns.length, palette = makePalette();
  unitsCanvas.style.width = `${width}px`;
  unitsCanvas.style.height = `${HEIGHT}px`;
  const context = fitCanvas(unitsCanvas, width, HEIGHT);
  page.columns.slice(1).forEach((column) => drawEdges(context, column, palette));
  for (let unit = 0; unit < unitCount; unit++) {
    const square = squareOf(unit), isShown = !state.flow || state.flow.has(columnOfUnit[unit]);
    if (state.point && isShown) drawNumber(context, unit, palette);
    else drawMap(context, state.backward, unit, square, palette);
    context.lineWidth = unit !== state.unit ? 0.7 : state.kept ? 4 : 2;
    context.strokeStyle = color(unit === state.unit ? "--mark" : "--soft");
    context.strokeRect(square[0], square[1], square[2], square[2]);
  }
}
