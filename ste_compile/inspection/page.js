"use strict";
// The page reads without this: it filters the sites, and shows one graph at a time on the right.
document.documentElement.classList.add("js");

const words = document.querySelector("#filter");
const boxes = [...document.querySelectorAll("input[name=action]")];
const sites = [...document.querySelectorAll("tbody.site")].map((body) => ({
  body,
  text: body.rows[0].textContent.replace(/\s+/g, " ").toLowerCase(),
}));

function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/);
  const actions = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  let shown = 0;
  for (const { body, text } of sites) {
    body.hidden = !(actions.has(body.dataset.action) && wanted.every((word) => text.includes(word)));
    shown += !body.hidden;
  }
  document.querySelector("#count").textContent = `${shown} of ${sites.length} sites`;
}

if (words) {
  words.addEventListener("input", filter);
  boxes.forEach((box) => box.addEventListener("change", filter));
  filter(); // a browser may have kept what was typed before a reload
}

// "until-found": the browser's own search, and links, still find what is in the graphs not shown.
function show(view) {
  const select = document.querySelector(`select[data-graph="${view.dataset.graph}"]`);
  if (!select) return;
  select.value = view.id;
  for (const option of select.options) {
    document.getElementById(option.value).hidden = option.value === view.id ? false : "until-found";
  }
}

for (const select of document.querySelectorAll("select[data-graph]")) {
  const view = () => document.getElementById(select.value);
  select.addEventListener("change", () => show(view()));
  show(view());
}
for (const view of document.querySelectorAll(".view")) view.addEventListener("beforematch", () => show(view));

// The browser scrolls to a link's target and focuses it, but not to one that was hidden; and the lines of a long graph get their
// height only as they come into view, which moves the target once it is there.
function arrive() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const view = target?.closest(".view[data-graph]");
  if (target?.hidden) {
    words.value = "";
    boxes.forEach((box) => (box.checked = true));
    filter();
    target.focus();
  } else if (view?.hidden) {
    show(view);
    target.focus();
  }
  if (target) settle(target, 3);
}

function settle(target, times) {
  target.scrollIntoView();
  if (times) requestAnimationFrame(() => settle(target, times - 1));
}
addEventListener("hashchange", arrive);
addEventListener("click", (event) => {
  if (event.target.closest("a[href^='#']")) setTimeout(arrive); // also where the address stays the same
});
arrive();
