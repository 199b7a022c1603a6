"use strict";

// all times are in milliseconds, but for those of the audio element
const find = (selector) => document.querySelector(selector);
const content = JSON.parse(find("#content").textContent);
const { duration, turns } = content;
const audio = find("audio"), view = find("#view"), wide = view.firstChild, canvas = find("canvas");
const rows = [...document.querySelectorAll("li")], inputs = rows.map((row) => row.querySelector("input"));
const lanes = content.speakers.map((_, speaker) => turns.filter((turn) => turn[2] === speaker));

// ---- audio and waveform, out of their base64

function decode(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
  return bytes;
}

audio.src = URL.createObjectURL(new Blob([decode(find("#audio").textContent)], { type: "audio/ogg" }));
find("#audio").remove();
audio.addEventListener("error", () => {
  find("#problem").textContent = "This browser does not play Ogg Vorbis: names can be changed and saved, but nothing is heard.";
  find("#problem").hidden = false;
});

// each level has the greatest of two neighbours of the one before
const levels = [decode(content.peaks)];
while (levels.at(-1).length > 1) {
  const last = levels.at(-1);
  levels.push(Uint8Array.from({ length: Math.ceil(last.length / 2) }, (_, i) => Math.max(last[2 * i], last[2 * i + 1] ?? 0)));
}

// ---- turns

// of each lane, the end of what was said up to a turn: turns of one speaker may overlap
const ends = lanes.map((lane) => {
  let last = 0;
  return lane.map(([, end]) => (last = Math.max(last, end)));
});

/** Turns of a speaker that are not over at a time, and start before another. */
function* between(speaker, from, to) {
  let low = 0, high = lanes[speaker].length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[speaker][middle] > from) high = middle;
    else low = middle + 1;
  }
  for (; low < lanes[speaker].length && lanes[speaker][low][0] < to; low++) {
    if (lanes[speaker][low][1] > from) yield lanes[speaker][low];
  }
}

const current = (time) => lanes.flatMap((_, speaker) => [...between(speaker, time, time + 1)]);

function clock(time) {
  const seconds = Math.floor(time / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

// ---- names, which the browser keeps

const name = (speaker) => inputs[speaker].value.trim().replace(/\s+/g, " ") || content.speakers[speaker];

try {
  const kept = JSON.parse(localStorage.getItem(content.key)) ?? [];
  inputs.forEach((input, speaker) => (input.value = kept[speaker] ?? content.speakers[speaker]));
} catch {
  // some browsers keep nothing of local files
}
for (const input of inputs) {
  input.addEventListener("input", () => {
    try {
      localStorage.setItem(content.key, JSON.stringify(inputs.map((_, speaker) => name(speaker))));
    } catch {}
    redraw();
  });
  input.addEventListener("keydown", (event) => ["Enter", "Escape"].includes(event.key) && view.focus());
}

function save(extension, lines) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "text/plain" }));
  link.download = `${content.file}.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const seconds = (time) => (time / 1000).toFixed(3);
const field = (text) => text.replace(/\s+/g, "_");

find("#rttm").onclick = () => save("rttm", turns.map(([start, end, speaker]) =>
  `SPEAKER ${field(content.uri)} 1 ${seconds(start)} ${seconds(end - start)} <NA> <NA> ${field(name(speaker))} <NA> <NA>\n`));
find("#labels").onclick = () => save("txt", turns.map(([start, end, speaker]) =>
  `${seconds(start)}\t${seconds(end)}\t${name(speaker)}\n`));

// ---- where the recording is, and what of it is in view

let width = 0; // of the view, in pixels
let scale = 0; // pixels per millisecond
let visible = true; // whether the playhead was, when it was last drawn

const now = () => 1000 * audio.currentTime;
const whole = () => width / duration;
const position = (time) => time * scale - view.scrollLeft;

function seek(time) {
  audio.currentTime = Math.min(Math.max(time, 0), duration) / 1000;
  const x = position(now());
  if (x < 0 || x > 0.95 * width) view.scrollLeft += x - 0.3 * width;
  redraw();
}

function zoom(factor, x) {
  const time = (view.scrollLeft + x) / scale;
  scale = Math.min(Math.max(scale * factor, whole()), Math.max(0.2, whole()));
  wide.style.width = `${duration * scale}px`;
  view.scrollLeft = time * scale - x;
  redraw();
}

function zoomAtPlayhead(factor) {
  const x = position(now());
  zoom(factor, x >= 0 && x <= width ? x : width / 2);
}

const play = () => audio.play().catch(() => {});
const toggle = () => (audio.paused ? play() : audio.pause());

function next() {
  const turn = turns.find(([start]) => start > now() + 10);
  if (turn) seek(turn[0]);
}

function previous() {
  // while it plays, a second to press the key again
  const before = now() - (audio.paused ? 10 : 1000);
  seek(turns.findLast(([start]) => start < before)?.[0] ?? 0);
}

// ---- drawing: what is in view, and no more

const context = canvas.getContext("2d");
const style = getComputedStyle(document.documentElement);
const size = (property) => parseFloat(style.getPropertyValue(property));
const AXIS = 22, WAVE = size("--wave-height"), LANE = size("--lane-height");
const height = WAVE + Math.max(1, lanes.length) * LANE;
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400].map((step) => 1000 * step);

function drawTicks(from, to) {
  const step = STEPS.find((step) => step * scale >= 70) ?? STEPS.at(-1);
  context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  for (let time = Math.ceil(from / step) * step; time < to; time += step) {
    const x = Math.round(position(time)) + 0.5;
    context.fillStyle = style.getPropertyValue("--line");
    context.fillRect(x - 0.5, AXIS - 6, 1, height);
    context.fillStyle = style.getPropertyValue("--quiet");
    const label = clock(time) + (step < 1000 ? `.${Math.floor((time % 1000) / 100)}` : "");
    context.fillText(label, x + 3, AXIS - 8);
  }
}

function drawWaveform(from) {
  // a column of pixels has one or two peaks of its level
  const perColumn = levels[0].length / (duration * scale);
  const level = Math.max(0, Math.min(Math.floor(Math.log2(perColumn)), levels.length - 1));
  const peaks = levels[level], middle = (AXIS + WAVE) / 2, half = (WAVE - AXIS) / 2 - 4;
  const step = perColumn / 2 ** level, first = (from * levels[0].length) / duration / 2 ** level;
  context.fillStyle = style.getPropertyValue("--wave");
  for (let x = 0; x < width; x++) {
    let peak = 0;
    for (let i = Math.floor(first + x * step); i < first + (x + 1) * step && i < peaks.length; i++) peak = Math.max(peak, peaks[i]);
    const reach = Math.max(0.5, (half * peak) / 255);
    context.fillRect(x, middle - reach, 1, 2 * reach);
  }
}

function drawLane(speaker, from, to, spoken) {
  const y = WAVE + speaker * LANE;
  context.fillStyle = content.colors[speaker];
  let edge = -Infinity;
  for (const [start, end] of between(speaker, from, to)) {
    const left = Math.max(position(start), -9), right = Math.max(Math.min(position(end), width + 9), left + 1);
    if (right <= edge) continue; // hundreds may share a pixel
    context.fillRect(left, y + 7, right - left, LANE - 14);
    edge = right;
  }
  context.strokeStyle = style.getPropertyValue("--text");
  context.lineWidth = 2;
  for (const [start, end] of spoken) {
    if (start < to && end > from) context.strokeRect(position(start), y + 6, (end - start) * scale, LANE - 12);
  }
}

function draw() {
  const time = now(), spoken = current(time), speaking = new Set(spoken.map((turn) => turn[2]));
  // a page is turned for those who see the playhead, not for those who look elsewhere
  if (!audio.paused && visible && position(time) > width) view.scrollLeft = time * scale - 0.05 * width;
  visible = position(time) >= 0 && position(time) <= width;
  const from = view.scrollLeft / scale, to = from + width / scale;

  context.clearRect(0, 0, width, height);
  for (const [speaker] of lanes.entries()) {
    context.fillStyle = style.getPropertyValue(speaking.has(speaker) ? "--now" : speaker % 2 ? "--page" : "--lane");
    context.fillRect(0, WAVE + speaker * LANE, width, LANE);
  }
  drawTicks(from, to);
  drawWaveform(from);
  for (const [speaker] of lanes.entries()) drawLane(speaker, from, to, spoken.filter((turn) => turn[2] === speaker));
  context.fillStyle = style.getPropertyValue("--text");
  context.fillRect(position(time) - 1, 0, 2, height);

  rows.forEach((row, speaker) => row.classList.toggle("now", speaking.has(speaker)));
  const names = [...speaking].map(name).join(", ") || "nobody speaks";
  tell("#time", `${clock(time)} / ${clock(duration)}`);
  tell("#play", audio.paused ? "Play" : "Pause");
  tell("#now", spoken.map(([start, end, speaker]) => `${name(speaker)}, ${clock(start)} to ${clock(end)}`).join("; ") || names);
  const value = `${clock(time)}, ${names}`;
  if (view.getAttribute("aria-valuetext") !== value) {
    view.setAttribute("aria-valuetext", value);
    view.setAttribute("aria-valuenow", Math.round(time / 1000));
  }
  if (!audio.paused) redraw();
}

function tell(selector, text) {
  if (find(selector).textContent !== text) find(selector).textContent = text;
}

let asked = 0;
function redraw() {
  asked ||= requestAnimationFrame(() => {
    asked = 0;
    draw();
  });
}

// ---- what happens

new ResizeObserver(() => {
  const wasWhole = scale <= whole();
  width = view.clientWidth;
  const pixels = devicePixelRatio || 1;
  canvas.width = Math.round(width * pixels);
  canvas.height = Math.round(height * pixels);
  canvas.style.width = `${width}px`;
  canvas.style.height = wide.style.height = `${height}px`;
  context.setTransform(pixels, 0, 0, pixels, 0, 0);
  if (wasWhole) scale = whole();
  zoom(1, 0);
}).observe(view);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
view.setAttribute("aria-valuemax", Math.round(duration / 1000));
view.addEventListener("scroll", redraw);
view.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 200), event.clientX - view.getBoundingClientRect().left);
}, { passive: false });
canvas.addEventListener("click", (event) => {
  seek((view.scrollLeft + event.offsetX) / scale);
  play();
});
for (const event of ["play", "pause", "seeked", "ended", "loadedmetadata"]) audio.addEventListener(event, redraw);

const actions = { next, previous, play: toggle, in: () => zoomAtPlayhead(2), out: () => zoomAtPlayhead(0.5), whole: () => zoomAtPlayhead(0) };
for (const [id, action] of Object.entries(actions)) find(`#${id}`).onclick = action;

const keys = {
  " ": toggle,
  ArrowLeft: () => seek(now() - 5000),
  ArrowRight: () => seek(now() + 5000),
  Home: () => seek(0),
  End: () => seek(duration),
  n: next,
  p: previous,
  "+": actions.in,
  "=": actions.in, // the key of +, without shift
  "-": actions.out,
  0: actions.whole,
};
document.addEventListener("keydown", (event) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const typing = event.target.tagName === "INPUT" || (event.target.tagName === "BUTTON" && key === " ");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, key)) return;
  event.preventDefault();
  keys[key]();
});
