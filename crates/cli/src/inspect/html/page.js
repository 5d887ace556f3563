"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const graph = document.getElementById("graph");
const scroll = document.getElementById("scroll");
const details = document.getElementById("details");
const boxes = [...graph.querySelectorAll(".box")];
const groups = [...document.querySelectorAll(".group")];
const hint = details.innerHTML;
const size = { width: +graph.getAttribute("width"), height: +graph.getAttribute("height") };
let zoom = 1;
let picked = new Set();

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function describe(index) {
  const box = data.boxes[index];
  details.replaceChildren(element("h3", box.name));
  const list = details.appendChild(element("dl"));
  const row = (what, ...content) => {
    list.append(element("dt", what), element("dd"));
    list.lastChild.append(...content);
  };
  for (const [what, text] of box.facts) row(what, text);
  for (const [what, ids] of [["reads", box.reads], ["gives", box.gives]]) {
    for (const id of ids) {
      const [name, units] = data.groups[id];
      row(what === "reads" ? "reads group" : "gives group", element("span", "", `swatch c${id}`), `${name}, ${units} units`);
    }
  }
  if (box.frozen) row("frozen", box.frozen);
}

function pick(ids) {
  picked = ids;
  graph.classList.toggle("picked", ids.size > 0);
  for (const lit of graph.querySelectorAll(".lit")) lit.classList.remove("lit");
  for (const id of ids) for (const part of graph.querySelectorAll(`.in-${id}`)) part.classList.add("lit");
  for (const group of groups) group.setAttribute("aria-pressed", String(ids.has(+group.dataset.group)));
}

function show(box) {
  const area = scroll.getBoundingClientRect();
  const at = box.getBoundingClientRect();
  if (at.top < area.top || at.bottom > area.bottom) scroll.scrollTop += at.top - area.top - area.height / 2;
  if (at.left < area.left || at.right > area.right) scroll.scrollLeft += at.left + at.width / 2 - area.left - area.width / 2;
}

function focus(box) {
  for (const other of boxes) other.tabIndex = other === box ? 0 : -1;
  box.focus({ preventScroll: true });
  show(box);
}

/* The nearest box in a direction: vertical steps go to the next layer, horizontal ones stay in it. */
function neighbour(box, dx, dy) {
  const x = +box.dataset.x, y = +box.dataset.y;
  let best = null, least = Infinity;
  for (const other of boxes) {
    const ox = +other.dataset.x - x, oy = +other.dataset.y - y;
    const ahead = dy ? oy * dy : ox * dx;
    if (ahead <= 0 || (dx && oy)) continue;
    const far = dy ? ahead * 1000 + Math.abs(ox) : ahead;
    if (far < least) { least = far; best = other; }
  }
  return best;
}

const arrows = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

boxes.forEach((box, index) => {
  box.addEventListener("pointerenter", () => describe(index));
  box.addEventListener("focus", () => describe(index));
  const toggle = () => {
    const ids = new Set([...data.boxes[index].reads, ...data.boxes[index].gives]);
    const same = ids.size === picked.size && [...ids].every((id) => picked.has(id));
    pick(same ? new Set() : ids);
  };
  box.addEventListener("click", () => { focus(box); toggle(); });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); }
    if (event.key in arrows) {
      event.preventDefault();
      const next = neighbour(box, ...arrows[event.key]);
      if (next) focus(next);
    }
    if (event.key === "Home" || event.key === "End") {
      event.preventDefault();
      focus(event.key === "Home" ? boxes[0] : boxes[boxes.length - 1]);
    }
  });
});

for (const group of groups) {
  group.addEventListener("click", () => {
    const id = +group.dataset.group;
    const alone = picked.size === 1 && picked.has(id);
    pick(alone ? new Set() : new Set([id]));
    const first = graph.querySelector(`.box.in-${id}`);
    if (!alone && first) show(first);
  });
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { pick(new Set()); details.innerHTML = hint; }
});

document.getElementById("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const group of groups) group.parentElement.hidden = !group.textContent.toLowerCase().includes(wanted);
});

function resize(to) {
  const middle = (scroll.scrollTop + scroll.clientHeight / 2) / zoom;
  zoom = Math.min(3, Math.max(0.05, to));
  graph.setAttribute("width", size.width * zoom);
  graph.setAttribute("height", size.height * zoom);
  scroll.scrollTop = middle * zoom - scroll.clientHeight / 2;
}

const fitted = () => Math.min(1, (scroll.clientWidth - 4) / size.width);
document.getElementById("in").addEventListener("click", () => resize(zoom * 1.25));
document.getElementById("out").addEventListener("click", () => resize(zoom / 1.25));
document.getElementById("fit").addEventListener("click", () => resize(Math.min(fitted(), (scroll.clientHeight - 4) / size.height)));
if (size.width > scroll.clientWidth) { resize(Math.max(0.5, fitted())); scroll.scrollTop = 0; scroll.scrollLeft = (size.width * zoom - scroll.clientWidth) / 2; }
