"use strict";
// All data are embedded as gzip of JSON: columns of all traces (meta), and their texts in blocks that are decompressed
// on demand. Texts are inserted as textContent only, so that they cannot contain markup.
const ROW = 58, MARGIN = 8;
const byId = (id) => document.getElementById(id);
const state = { shown: [], at: -1, opened: -1, found: null, asked: 0, threshold: null, colour: "score" };
const blocks = new Map();
let meta;

async function unpacked(id) {
  const packed = Uint8Array.from(atob(byId(id).textContent.trim()), (one) => one.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function block(number) {
  if (!blocks.has(number)) blocks.set(number, unpacked("block-" + number));
  return blocks.get(number);
}

async function text(trace) {
  return (await block(Math.floor(trace / meta.block)))[trace % meta.block];
}

function made(name, className, content) {
  const found = document.createElement(name);
  if (className) found.className = className;
  if (content !== undefined) found.textContent = content;
  return found;
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  return value !== 0 && Math.abs(value) < 10 ** -digits ? value.toExponential(2) : value.toFixed(digits);
}
const whole = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en-US"));
const share = (part, all) => (all ? (100 * part / all).toFixed(1) + " %" : "–");

// Filters and order of the traces.

function better(one, other) {
  return meta.highest_first ? other - one : one - other;
}

const ORDERS = {
  "best score first": (a, b) => compare(meta.score[a], meta.score[b], better),
  "worst score first": (a, b) => compare(meta.score[a], meta.score[b], (x, y) => better(y, x)),
  "rank": (a, b) => compare(meta.rank[a], meta.rank[b], (x, y) => x - y),
  "longest first": (a, b) => compare(meta.length[a], meta.length[b], (x, y) => y - x),
  "shortest first": (a, b) => compare(meta.length[a], meta.length[b], (x, y) => x - y),
  "most steps first": (a, b) => compare(meta.steps[a], meta.steps[b], (x, y) => y - x),
};

function compare(one, other, how) {
  if (one === null || other === null) return (one === null) - (other === null);
  return how(one, other);
}

const CHOSEN = {
  "selected or not": () => true,
  "selected": (trace) => meta.rank[trace] !== null,
  "not selected": (trace) => meta.rank[trace] === null,
};
const MEMBERS = {
  "in either": () => true,
  "in both": (trace) => meta.member[trace] === "both",
  "only in the first": (trace) => meta.member[trace] === "first",
  "only in the second": (trace) => meta.member[trace] === "second",
};

function survives(trace) {
  if (state.threshold === null) return true;
  const score = meta.score[trace];
  return score !== null && (meta.highest_first ? score >= state.threshold : score <= state.threshold);
}

function refresh() {
  const source = byId("source").value, flag = byId("flag").value;
  const chosen = (meta.member ? MEMBERS : CHOSEN)[byId("chosen").value];
  const least = byId("least").value === "" ? -Infinity : Number(byId("least").value);
  const most = byId("most").value === "" ? Infinity : Number(byId("most").value);
  const passes = (trace) =>
    (source === "" || meta.sources[meta.source[trace]] === source) && chosen(trace) && survives(trace) &&
    (flag === "" || meta.flags[trace].includes(flag)) && meta.length[trace] >= least && meta.length[trace] <= most &&
    (state.found === null || state.found.has(trace));
  state.shown = meta.id.map((_, trace) => trace).filter(passes);
  state.shown.sort((a, b) => ORDERS[byId("order").value](a, b) || a - b);
  state.at = state.shown.indexOf(state.opened);
  byId("space").style.height = state.shown.length * ROW + "px";
  byId("list").scrollTop = 0;
  byId("status").textContent = `${whole(state.shown.length)} of ${whole(meta.id.length)} traces`;
  draw();
}

// The list: only visible rows are created.

function draw() {
  const list = byId("list"), space = byId("space");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - MARGIN);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + MARGIN);
  const rows = [];
  for (let place = first; place < last; place++) rows.push(row(place));
  space.replaceChildren(...rows);
  const active = state.at >= first && state.at < last ? "row-" + state.at : "";
  if (active) list.setAttribute("aria-activedescendant", active); else list.removeAttribute("aria-activedescendant");
}

function row(place) {
  const trace = state.shown[place], found = made("div", "row"), top = made("div", "top");
  found.id = "row-" + place;
  found.style.top = place * ROW + "px";
  found.setAttribute("role", "option");
  found.setAttribute("aria-selected", String(place === state.at));
  found.setAttribute("aria-setsize", state.shown.length);
  found.setAttribute("aria-posinset", place + 1);
  const rank = meta.rank[trace];
  top.append(made("b", "", number(meta.score[trace])), made("span", "", rank === null ? "not selected" : "rank " + rank));
  if (meta.member) top.append(made("span", "", meta.member[trace] === "both" ? "both" : "only " + meta.member[trace]));
  top.append(made("span", "grow", meta.sources[meta.source[trace]]), made("span", "", whole(meta.length[trace])));
  if (meta.flags[trace].length) top.append(made("span", "", "⚑"));
  found.append(top, made("div", "preview", meta.preview[trace]));
  found.addEventListener("click", () => { state.at = place; open(trace); draw(); });
  return found;
}

function go(place) {
  if (!state.shown.length) return;
  state.at = Math.min(state.shown.length - 1, Math.max(0, place));
  const list = byId("list"), top = state.at * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  draw();
}

// One trace.

async function open(trace) {
  const asked = ++state.asked, found = await text(trace);
  if (asked !== state.asked) return;
  state.opened = trace;
  document.body.classList.add("open");
  history.replaceState(null, "", "#" + meta.id[trace]);
  const back = made("button", "", "← back to the list");
  back.id = "back";
  back.addEventListener("click", close);
  const tip = made("div");
  tip.id = "tip";
  tip.setAttribute("aria-live", "polite");
  const parts = [back, made("h2", "", meta.id[trace]), chips(trace, found), made("p", "", found.why)];
  parts.push(made("h3", "", "prompt"));
  for (const turn of found.messages) {
    const box = made("div", "turn", turn.content);
    box.prepend(made("span", "role", turn.role));
    parts.push(box);
  }
  for (const picture of found.images) parts.push(image(picture));
  parts.push(made("h3", "", "response"), ...legend(found), tip, response(found, tip));
  const group = meta.groups[meta.prompt[trace]].filter((other) => other !== trace);
  if (group.length) {
    parts.push(made("h3", "", `${group.length} more to this prompt, side by side`));
    const beside = made("div", "group");
    parts.push(beside);
    Promise.all(group.map(text)).then((texts) => {
      if (asked === state.asked) beside.append(...group.map((other, place) => card(other, texts[place], tip)));
    });
  }
  byId("trace").replaceChildren(...parts);
  byId("trace").scrollTop = 0;
  describe(tip, found, null);
}

function close() {
  document.body.classList.remove("open");
  byId("list").focus();
}

function chips(trace, found) {
  const list = made("ul", "chips"), rank = meta.rank[trace];
  const said = [`${meta.name} ${number(meta.score[trace])}`, rank === null ? "not selected" : `rank ${rank}`];
  if (meta.member) said.push(`second: ${number(meta.other_score[trace])}, rank ${meta.other_rank[trace] ?? "–"}`);
  said.push(`${whole(meta.length[trace])} ${meta.unit}`, `${whole(meta.steps[trace])} steps`);
  for (const [name, value] of Object.entries(found.facts)) said.push(`${name}: ${value}`);
  list.append(...said.map((one) => made("li", "", one)), ...meta.flags[trace].map((one) => made("li", "flag", one)));
  return list;
}

function image(picture) {
  if (!picture.data) return made("p", "hint", `image ${picture.name}: not shown (${picture.why})`);
  const found = made("img");
  found.src = picture.data;
  found.alt = picture.name;
  return found;
}

// Steps are coloured by their scores, or by z: the distance from the mean of the pool's steps at the same position, in
// standard deviations.
const SCORE = 2, Z = 5;
const COLOURS = { z: "adjusted for position", score: "raw score" };
const MEANINGS = {
  z: "standard deviations from the mean at the step's position",
  score: "step score",
};

function coloured(values) {
  return values[state.colour === "z" ? Z : SCORE];
}

function legend(found) {
  if (!found.steps.some((step) => step[SCORE] !== null)) return [];
  const made_ = made("div", "legend");
  if (meta.scales.z) {
    const label = made("label", "", "colour: "), choice = made("select");
    choice.id = "colour";
    for (const [value, name] of Object.entries(COLOURS)) {
      const one = made("option", "", name);
      one.value = value;
      choice.append(one);
    }
    choice.value = state.colour;
    choice.addEventListener("input", () => { state.colour = choice.value; repaint(); });
    label.append(choice);
    made_.append(label);
  }
  const scale = made("span", "scale");
  scale.append(made("span", "low"), made("i"), made("span", "high"));
  made_.append(scale, made("span", "meaning"));
  explain(made_);
  return [made_];
}

function explain(legend) {
  const { low, high } = meta.scales[state.colour], digits = state.colour === "z" ? 1 : 2;
  legend.querySelector(".low").textContent = number(low, digits);
  legend.querySelector(".high").textContent = number(high, digits);
  legend.querySelector(".meaning").textContent =
    MEANINGS[state.colour] + "; dashed: low, solid: high; the answer is framed";
}

function repaint() {
  document.querySelectorAll("#trace .legend").forEach(explain);
  document.querySelectorAll("#trace .step").forEach(paint);
}

// -1 to 1: position of a step's value between the low and the high values of this page.
function strength(value) {
  const { low, middle, high } = meta.scales[state.colour], off = value - middle;
  const reach = off < 0 ? middle - low : high - middle;
  return reach > 0 ? Math.max(-1, Math.min(1, off / reach)) : 0;
}

const stepsOf = new WeakMap();

function paint(box) {
  const { place, values } = stepsOf.get(box), value = coloured(values);
  const said = (one) => `${one < 0 ? "−" : "+"}${Math.abs(one).toFixed(state.colour === "z" ? 1 : 2)}`;
  box.querySelector(".n").textContent =
    value === null ? String(place + 1) : `${place + 1} ${state.colour === "z" ? "z " : ""}${said(value)}`;
  const where = value === null ? 0 : strength(value), color = where < 0 ? "179,88,6" : "33,102,172";
  box.style.background = value === null ? "" : `rgba(${color},${(Math.abs(where) * 0.5).toFixed(2)})`;
  box.classList.toggle("low", where <= -0.5);
  box.classList.toggle("high", where >= 0.5);
}

function response(found, tip) {
  const box = made("div", "response");
  let reached = 0;
  found.steps.forEach(([start, end], place) => {
    if (end <= reached) return;
    const from = Math.max(start, reached);
    fill(box, found, reached, from);
    box.append(step(found, from, end, place, tip));
    reached = end;
  });
  fill(box, found, reached, found.response.length);
  return box;
}

// A piece of the response, with the part of the answer inside it framed.
function fill(box, found, from, end) {
  const [start, stop] = found.answer ?? [0, 0];
  const [low, high] = [Math.max(from, start), Math.min(end, stop)];
  if (low >= high) { box.append(found.response.slice(from, end)); return; }
  box.append(found.response.slice(from, low), made("span", "answer", found.response.slice(low, high)));
  box.append(found.response.slice(high, end));
}

function step(found, from, end, place, tip) {
  const box = made("span", "step");
  box.tabIndex = 0;
  box.append(made("span", "n"));
  fill(box, found, from, end);
  stepsOf.set(box, { place, values: found.steps[place] });
  paint(box);
  for (const event of ["mouseenter", "focus", "click"]) box.addEventListener(event, () => describe(tip, found, place));
  return box;
}

function describe(tip, found, place) {
  if (place === null) {
    tip.textContent = found.steps.length ? "Hover over a step, or tab to it." : "No steps were found in this response.";
    return;
  }
  const [, , score, alignment, consistency, z] = found.steps[place];
  const adjusted = meta.scales.z ? ` · z at this position ${number(z, 2)}` : "";
  tip.textContent = `step ${place + 1} of ${found.steps.length} · score ${number(score)}${adjusted}` +
    // Only GRACE's scores have these parts.
    (alignment === null ? "" :
      ` · answer alignment ${number(alignment)} · trajectory consistency ${number(consistency)}`);
}

function card(trace, found, tip) {
  const box = made("div"), rank = meta.rank[trace];
  const label = `${number(meta.score[trace])}, ${rank === null ? "not selected" : "rank " + rank}`;
  const button = made("button", "", `${label}: ${meta.id[trace].slice(0, 12)}`);
  button.addEventListener("click", () => { state.at = state.shown.indexOf(trace); open(trace); draw(); });
  box.append(button, chips(trace, found), response(found, tip));
  return box;
}

// Threshold.

function drawHistogram() {
  const left = meta.survivors.samples, bins = 60, svg = byId("histogram"), counts = [];
  if (!left.length) { byId("threshold").hidden = true; return; }
  const edge = (bin) => Math.round(bin * (left.length - 1) / bins);
  for (let bin = 0; bin < bins; bin++) {
    const all = Math.abs(left[edge(bin)] - left[edge(bin + 1)]);
    const end = meta.highest_first ? (bin === bins - 1 ? left[left.length - 1] : 0) : (bin === 0 ? left[0] : 0);
    counts.push(all + end);
  }
  const highest = Math.max(...counts, 1);
  svg.replaceChildren(...counts.map((count, bin) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = count ? Math.max(1, 58 * count / highest) : 0;
    for (const [name, value] of [["x", bin * 10], ["y", 60 - height], ["width", 9], ["height", height]]) {
      bar.setAttribute(name, value);
    }
    return bar;
  }));
}

function slide() {
  const place = Number(byId("slider").value), { thresholds, samples, steps, tokens } = meta.survivors;
  const all = meta.highest_first ? 0 : thresholds.length - 1;
  state.threshold = place === all ? null : thresholds[place];
  const sign = meta.highest_first ? "≥" : "≤", unit = meta.survivors.unit;
  const part = (values, what) => `${whole(values[place])} ${what} (${share(values[place], values[all])})`;
  byId("survivors").textContent =
    `${meta.name} ${sign} ${number(thresholds[place])} leaves ${part(samples, "samples")}, ${part(steps, "steps")}, ` +
    part(tokens, unit);
  byId("slider").setAttribute("aria-valuetext", byId("survivors").textContent);
  const bars = byId("histogram").children;
  for (let bin = 0; bin < bars.length; bin++) {
    const middle = (bin + 0.5) / bars.length * (thresholds.length - 1);
    bars[bin].classList.toggle("in", meta.highest_first ? middle >= place : middle <= place);
  }
}

// Search goes through all blocks; a newer search cancels it.

let searching = 0;
async function search() {
  const mine = ++searching, query = byId("search").value.trim().toLowerCase();
  if (!query) { state.found = null; refresh(); return; }
  const found = new Set(), count = Math.ceil(meta.id.length / meta.block);
  for (let number = 0; number < count; number++) {
    const texts = await block(number);
    if (mine !== searching) return;
    texts.forEach((one, place) => {
      const trace = number * meta.block + place;
      const hay = one.hay ??= [one.response, ...one.messages.map((turn) => turn.content)].join("\n").toLowerCase();
      if (meta.id[trace].startsWith(query) || hay.includes(query)) found.add(trace);
    });
    if (number % 8 === 7) {
      byId("status").textContent = `searching: ${whole((number + 1) * meta.block)} of ${whole(meta.id.length)} traces`;
      await new Promise((done) => setTimeout(done));
    }
  }
  state.found = found;
  refresh();
}

function options(id, names) {
  byId(id).append(...names.map((name) => { const one = made("option", "", name); one.value = name; return one; }));
}

// Three views: traces, funnel and audit.

const VIEWS = ["traces", "funnel", "audit"];

function view(name) {
  for (const one of VIEWS) {
    byId("tab-" + one).setAttribute("aria-selected", String(one === name));
    byId("tab-" + one).tabIndex = one === name ? 0 : -1;
    byId("view-" + one).hidden = one !== name;
  }
  if (name === "traces") draw();
}

function tabKeys(event) {
  const at = VIEWS.findIndex((one) => byId("tab-" + one) === event.target);
  const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: VIEWS.length - 1 };
  if (at < 0 || !(event.key in places)) return;
  const name = VIEWS[(places[event.key] + VIEWS.length) % VIEWS.length];
  view(name);
  byId("tab-" + name).focus();
  event.preventDefault();
}

function keys(event) {
  if (event.target.matches("button") || byId("view-traces").hidden) return;
  if (event.target.matches("input, select")) { if (event.key === "Escape") byId("list").focus(); return; }
  const page = Math.max(1, Math.floor(byId("list").clientHeight / ROW) - 1);
  const moves = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page };
  if (event.key === "/") { byId("search").focus(); event.preventDefault(); }
  else if (event.key === "Escape") close();
  else if (event.target.closest("#trace") && !["j", "k"].includes(event.key)) return;
  else if (event.key in moves) { go(state.at + moves[event.key]); event.preventDefault(); }
  else if (event.key === "Home") { go(0); event.preventDefault(); }
  else if (event.key === "End") { go(state.shown.length - 1); event.preventDefault(); }
  else if (event.key === "Enter" && state.at >= 0) { open(state.shown[state.at]); event.preventDefault(); }
}

function listen() {
  let waiting;
  byId("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 150); });
  for (const id of ["source", "chosen", "flag", "least", "most", "order"]) byId(id).addEventListener("input", refresh);
  byId("slider").addEventListener("input", () => { slide(); refresh(); });
  byId("list").addEventListener("scroll", () => requestAnimationFrame(draw));
  window.addEventListener("resize", draw);
  document.addEventListener("keydown", keys);
  for (const one of VIEWS) {
    byId("tab-" + one).addEventListener("click", () => view(one));
    byId("tab-" + one).addEventListener("keydown", tabKeys);
  }
  byId("reset").addEventListener("click", () => { reset(); refresh(); });
}

function reset() {
  for (const id of ["search", "source", "flag", "least", "most"]) byId(id).value = "";
  for (const id of ["chosen", "order"]) byId(id).selectedIndex = 0;
  byId("slider").max = Math.max(0, meta.survivors.thresholds.length - 1);
  byId("slider").value = meta.highest_first ? 0 : byId("slider").max;
  state.found = null;
  searching++;
  if (meta.survivors.samples.length) slide();
}

async function start() {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old: it cannot unpack gzip");
  meta = await unpacked("meta");
  state.colour = meta.colour;
  meta.groups = [];
  meta.prompt.forEach((group, trace) => (meta.groups[group] ??= []).push(trace));
  options("source", meta.sources);
  options("flag", [...new Set(meta.flags.flat())].sort());
  options("chosen", Object.keys(meta.member ? MEMBERS : CHOSEN));
  options("order", Object.keys(ORDERS));
  drawHistogram();
  reset();
  listen();
  refresh();
  const named = meta.id.indexOf(location.hash.slice(1));
  if (named >= 0) { go(state.shown.indexOf(named)); open(named); }
}

start().catch((error) => { byId("status").textContent = `this page cannot be shown: ${error.message}`; });
