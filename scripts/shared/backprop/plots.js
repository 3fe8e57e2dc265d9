// The plane with its decisions and points, and curves over the epochs.

const planeCanvas = document.getElementById("plane");
const REACH = 12; // a click so many pixels from an example means it

function classColor(label) {
  const colors = color("--classes").split(" ");
  return colors[label % colors.length];
}

// The pixels of a point in a square of this side.
function planePixel([x, y], side) {
  const [[left, bottom], [right, top]] = page.corners;
  return [((x - left) / (right - left)) * side, (1 - (y - bottom) / (top - bottom)) * side];
}

// Colours come again after as many classes as there are; the shapes are shifted then.
const SHAPES = "●■▲";
const shapeOf = (label) => (label + Math.floor(label / color("--classes").split(" ").length)) % 3;

function drawMark(context, label, x, y, size) {
  context.beginPath();
  if (shapeOf(label) === 0) context.arc(x, y, size, 0, 2 * Math.PI);
  else if (shapeOf(label) === 1) context.rect(x - size, y - size, 2 * size, 2 * size);
  else {
    context.moveTo(x, y - size * 1.3);
    context.lineTo(x + size * 1.2, y + size);
    context.lineTo(x - size * 1.2, y + size);
    context.closePath();
  }
}

// The decisions, the points, and the chosen point. Points whose decision is wrong are crossed out.
function drawPlane() {
  const side = planeCanvas.clientWidth, context = fitCanvas(planeCanvas, side, side);
  const scratch = document.createElement("canvas");
  const cells = page.decisionCells, { decisions } = page.numbers;
  scratch.width = scratch.height = cells;
  const pixels = scratch.getContext("2d"), image = pixels.createImageData(cells, cells);
  const ground = channels(color("--ground")), tints = page.classes.map((_, label) =>
    channels(classColor(label)).map((part, index) => 0.2 * part + 0.8 * ground[index]));
  for (let cell = 0; cell < cells * cells; cell++) {
    const tint = tints[stored(decisions, state.moment, 0, cell)];
    image.data.set([...tint, 255], 4 * pixelOfCell(cell, cells));
  }
  pixels.putImageData(image, 0, 0);
  context.drawImage(scratch, 0, 0, side, side);
  page.points.forEach((point, number) => {
    const [x, y] = planePixel(point, side), label = page.labels[number];
    const isExample = page.examples.includes(number), size = isExample ? 5 : 2.4;
    context.fillStyle = classColor(label);
    drawMark(context, label, x, y, size);
    context.fill();
    context.strokeStyle = color("--mark");
    context.lineWidth = 1.6;
    if (isExample) context.stroke();
    if (page.wrong[state.moment].includes(number)) {
      context.beginPath();
      context.moveTo(x - 5, y - 5);
      context.lineTo(x + 5, y + 5);
      context.moveTo(x - 5, y + 5);
      context.lineTo(x + 5, y - 5);
      context.stroke();
    }
  });
  if (state.point) {
    const [x, y] = planePixel(placeOfPoint(), side);
    context.strokeStyle = color("--mark");
    context.lineWidth = 2;
    context.beginPath();
    context.arc(x, y, 11, 0, 2 * Math.PI);
    context.moveTo(x, 0);
    context.lineTo(x, side);
    context.moveTo(0, y);
    context.lineTo(side, y);
    context.stroke();
  }
}

// What a click at these pixels of the plane chooses.
function pointAt(x, y) {
  const side = planeCanvas.clientWidth;
  const distances = page.examples.map((number) => {
    const [left, top] = planePixel(page.points[number], side);
    return Math.hypot(left - x, top - y);
  });
  const nearest = Math.min(...distances);
  if (nearest <= REACH) return { example: distances.indexOf(nearest) };
  const step = (part) => Math.min(Math.max(Math.floor(part * page.cells), 0), page.cells - 1);
  return { cell: step(1 - y / side) * page.cells + step(x / side) };
}

// Curves over the epochs with a logarithmic axis, as SVG. A number that is 0 or not finite is a gap.
function curves(series, label) {
  const [width, height, left, bottom] = [320, 170, 46, 24];
  const all = series.flatMap(({ values }) => values).filter((value) => value > 0);
  const last = page.epochs.at(-1), first = page.epochs[0];
  let low = Math.floor(Math.log10(Math.min(...all))), high = Math.ceil(Math.log10(Math.max(...all)));
  if (!all.length) [low, high] = [-1, 0];
  if (low === high) high = low + 1;
  const across = (epoch) => left + ((width - left - 8) * (epoch - first)) / Math.max(last - first, 1);
  const up = (value) => 8 + (height - bottom - 8) * (1 - (Math.log10(value) - low) / (high - low));
  const parts = [], every = Math.ceil((high - low) / 6);
  for (let power = low; power <= high; power += every) {
    const y = up(10 ** power);
    parts.push(`<path d="M${left} ${y}H${width - 8}" stroke="var(--line)"/>`);
    const text = Math.abs(power) < 4 ? 10 ** power : `1e${power}`;
    parts.push(`<text x="${left - 5}" y="${y + 4}" text-anchor="end">${text}</text>`);
  }
  for (const { values, stroke, dashed, wide } of series) {
    let path = "", isBroken = true;
    values.forEach((value, index) => {
      if (value > 0) path += `${isBroken ? "M" : "L"}${across(page.epochs[index]).toFixed(1)} ${up(value).toFixed(1)}`;
      isBroken = !(value > 0);
    });
    parts.push(`<path d="${path}" fill="none" stroke="${stroke}" stroke-width="${wide ? 2 : 1}"
      ${dashed ? 'stroke-dasharray="6 4"' : ""}/>`);
  }
  const now = across(page.epochs[state.moment]);
  parts.push(`<path d="M${now} 8V${height - bottom}" stroke="var(--mark)" stroke-width="1.5"/>`);
  parts.push(`<text x="${left}" y="${height - 8}">${first}</text>`);
  parts.push(`<text x="${width - 8}" y="${height - 8}" text-anchor="end">epoch ${last}</text>`);
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${label}">${parts.join("")}</svg>`;
}
