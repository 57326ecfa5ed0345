"use strict";
const hiddenBy = new Set();
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const theme = document.getElementById("theme");

/** Whether a part is shown: of each kind of token that it has, one or more are switched on. */
function isShown(tokens) {
  const kinds = new Set(tokens.map((token) => token[0]));
  return [...kinds].every((kind) =>
    tokens.some((token) => token[0] === kind && !hiddenBy.has(token)));
}

function models() {
  return Bokeh.documents.flatMap((page) => [...page.all_models]);
}

function apply() {
  for (const part of document.querySelectorAll("[data-of]")) {
    part.hidden = !isShown(part.dataset.of.split(" ").filter(Boolean));
  }
  for (const model of models()) {
    if (model.tags.length) model.setv({ visible: isShown(model.tags) });
  }
}

/** A colour of the style sheet, as it is just now. */
function colour(name) {
  const probe = document.body.appendChild(document.createElement("span"));
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function paint() {
  const [ink, soft, line] = ["ink", "soft", "line"].map(colour);
  const looks = {
    LinearAxis: {
      axis_label_text_color: ink, major_label_text_color: ink,
      axis_line_color: soft, major_tick_line_color: soft,
    },
    Grid: { grid_line_color: line },
  };
  for (const model of models()) {
    const { grid_line_color: drawn } = model.type === "Grid" ? model : {};
    if (model.type in looks && drawn !== null) model.setv(looks[model.type]);
  }
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : prefersDark.matches;
}

function setTheme(dark) {
  theme.setAttribute("aria-pressed", String(dark));
  paint();
}

theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  setTheme(isDark());
});
prefersDark.addEventListener("change", () => setTheme(isDark()));
for (const box of document.querySelectorAll(".switches input")) {
  box.addEventListener("change", () => {
    hiddenBy[box.checked ? "delete" : "add"](box.value);
    apply();
  });
}

(async () => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const places = [...document.querySelectorAll(".chart")];
  await Promise.all(charts.map((chart, index) => Bokeh.embed.embed_item(chart, places[index])));
  setTheme(isDark());
  document.documentElement.dataset.ready = "";
})();
