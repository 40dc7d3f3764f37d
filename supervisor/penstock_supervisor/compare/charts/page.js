// Draws the panels that the page contains, in the colours of the reader's light or dark theme.
"use strict";
{
  const panels = JSON.parse(document.getElementById("panels").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = { displayModeBar: false, responsive: true };

  // Replaces names of colours, such as "--ink", by the values that the style sheet has for them now.
  const resolveColours = (value, style) => {
    if (typeof value === "string" && /^--[a-z]+$/.test(value)) return style.getPropertyValue(value).trim();
    if (Array.isArray(value)) return value.map((one) => resolveColours(one, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, resolveColours(one, style)]));
  };

  const theme = (style) => {
    const axis = { color: "--faint", gridcolor: "--grid", linecolor: "--line", tickfont: { color: "--ink", size: 12 },
                   title: { font: { color: "--faint", size: 12 } } };
    const font = { family: style.getPropertyValue("font-family"), size: 12, color: "--ink" };
    const hoverlabel = { bgcolor: "--paper", bordercolor: "--line", font: { color: "--ink" } };
    return { layout: { font, hoverlabel, xaxis: axis, yaxis: axis, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" } };
  };

  const draw = () => {
    const style = getComputedStyle(document.body);
    return Promise.all(panels.map(({ name, plot }) => {
      const layout = { ...plot.layout, template: theme(style) };
      return Plotly.react(name, resolveColours(plot.data, style), resolveColours(layout, style), config);
    }));
  };

  dark.addEventListener("change", draw);
  // For a screenshot of what comes first: where it ends.
  const picture = document.getElementById("picture");
  picture.dataset.end = Math.ceil(picture.offsetTop + picture.offsetHeight);

  // For a test or a screenshot that waits for the whole page.
  window.drawn = draw();
}
