"use strict";
// Sorting, filtering and pointing at marks. The page says everything without it.
const place = (block, column) => block.rows[0].cells[column].textContent.trim();
const number = (text) => /^[-+−]?[\d.,]+/.test(text) ? parseFloat(text.replace(/,/g, "").replace("−", "-")) : NaN;

function compare(a, b) {
  const [x, y] = [number(a), number(b)];
  if (!isNaN(x) && !isNaN(y)) return x - y;
  if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1; // what was not measured comes last
  return a.localeCompare(b, "en", { numeric: true });
}

function sort(table, head, column) {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const blocks = [...table.tBodies];
  blocks.sort((a, b) => compare(place(a, column), place(b, column)) * (up ? 1 : -1));
  table.append(...blocks);
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[table.tHead.rows.length - 1].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, head, column));
  });
  if (table.tBodies.length < 4) continue;
  const label = document.createElement("label");
  label.className = "filter";
  const input = document.createElement("input");
  input.type = "search";
  label.append("Filter rows: ", input);
  table.parentElement.before(label);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const block of table.tBodies) {
      const text = block.textContent.toLowerCase();
      block.hidden = !words.every((word) => text.includes(word));
    }
  });
}

// charts were measured with another font: make room for what is wider in this one
for (const chart of document.querySelectorAll(".panel > svg")) {
  const more = chart.closest("details:not([open])");
  if (more) more.open = true;
  const [box, view] = [chart.getBBox(), chart.viewBox.baseVal];
  const [left, right] = [Math.min(box.x, 0), Math.max(box.x + box.width, view.width)];
  chart.setAttribute("viewBox", `${left} 0 ${right - left} ${view.height}`);
  chart.setAttribute("width", right - left);
  if (more) more.open = false;
}

const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true");
document.body.append(tip);
document.addEventListener("pointerover", (event) => {
  const mark = event.target.closest('.panel [role="graphics-symbol"]:not([aria-roledescription$="axis"])');
  tip.hidden = !mark || !mark.closest(".role-mark");
  if (tip.hidden) return;
  tip.textContent = mark.getAttribute("aria-label");
  const box = mark.getBoundingClientRect();
  const left = Math.min(box.left + box.width / 2, innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${box.top > 60 ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
});
addEventListener("beforeprint", () => {
  for (const more of document.querySelectorAll("details")) more.open = true;
});
