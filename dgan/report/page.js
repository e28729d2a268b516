"use strict";
for (const timeline of document.querySelectorAll(".timeline")) {
  const frames = [...timeline.querySelectorAll("img")];
  const slider = timeline.querySelector("input"), button = timeline.querySelector("button");
  if (!slider) continue;
  const show = () => {
    frames.forEach((frame, index) => (frame.hidden = index !== +slider.value));
    timeline.querySelector("output").textContent = "step " + frames[slider.value].dataset.step;
  };
  let playing = 0;
  const pause = () => { clearInterval(playing); playing = 0; button.textContent = "▶"; };
  slider.addEventListener("input", () => { pause(); show(); });
  button.addEventListener("click", () => {
    if (playing) return pause();
    button.textContent = "❚❚";
    if (+slider.value === frames.length - 1) slider.value = -1;
    const next = () => {
      slider.value = +slider.value + 1;
      show();
      if (+slider.value === frames.length - 1) pause();
    };
    slider.value = Math.max(0, slider.value);
    show();
    playing = setInterval(next, 350);
  });
}

// The value under the pointer, from the places that are drawn.
const [LEFT, RIGHT, TOP, BOTTOM] = [50, 510, 10, 196];
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg"), cursor = chart.querySelector(".cursor");
  const [x0, x1] = svg.dataset.x.split(" ").map(Number), isLog = svg.dataset.log === "1";
  const [y0, y1] = svg.dataset.y.split(" ").map(Number).map(y => (isLog ? Math.log10(y) : y));
  const step = x => x0 + (x - LEFT) / (RIGHT - LEFT) * (x1 - x0);
  const value = y => {
    const at = y0 + (BOTTOM - y) / (BOTTOM - TOP) * (y1 - y0);
    return isLog ? 10 ** at : at;
  };
  const title = chart.querySelector("small"), note = title.textContent;
  const lines = [...chart.querySelectorAll("path.raw, path.line")].map(path => ({
    key: chart.querySelector(".key." + path.classList[1] + " b"),
    points: [...path.getAttribute("d").matchAll(/([\d.]+) ([\d.]+)/g)].map(p => [+p[1], +p[2]]),
  }));
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * 520;
    let place = null;
    for (const { key, points } of lines) {
      const near = points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      key.textContent = Number(value(near[1]).toPrecision(3));
      place = near[0];
    }
    if (place === null) return;
    title.textContent = "step " + Math.round(step(place)).toLocaleString("en");
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.style.visibility = "visible";
  });
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    title.textContent = note;
    lines.forEach(({ key }) => (key.textContent = ""));
  });
}
