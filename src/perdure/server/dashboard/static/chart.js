// The chart of /continuity, drawn by uPlot from the numbers that stand in the table below it.
(async () => {
  "use strict";
  const place = document.getElementById("chart");
  if (!place) return;
  const answer = await fetch(place.dataset.from, { credentials: "same-origin" });
  if (!answer.ok) return;
  const found = await answer.json();
  if (found.at.length < 2) return;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const tones = ["--c1", "--c2", "--c3", "--c4", "--c5"];
  const causes = Object.entries(found.fallbacks);
  const axis = () => ({ stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } });
  const draw = () => {
    place.replaceChildren();
    new uPlot({
      width: place.clientWidth, height: 220,
      scales: { x: { time: true }, rate: { range: [0, 1] }, count: { range: (_, low, high) => [0, Math.max(5, high)] } },
      axes: [axis(), { ...axis(), scale: "rate", values: (_, all) => all.map((each) => `${Math.round(each * 100)} %`) }, { ...axis(), scale: "count", side: 1, grid: { show: false } }],
      series: [
        {},
        { label: "continued", scale: "rate", stroke: colour("--good"), width: 2, points: { size: 6 }, value: (_, each) => each == null ? "–" : `${(each * 100).toFixed(1)} %` },
        ...causes.map(([cause], at) => ({ label: cause, scale: "count", stroke: colour(tones[at % tones.length]), width: 1.5, points: { size: 5 } })),
      ],
    }, [found.at, found.rate, ...causes.map(([, counts]) => counts)], place);
  };
  draw();
  let width = place.clientWidth;
  addEventListener("resize", () => { if (place.clientWidth !== width) { width = place.clientWidth; draw(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
