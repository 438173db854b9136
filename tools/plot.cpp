// Grouped bar charts as SVG, written by hand: panels in a grid, one scale for all.
#include "plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

namespace flash3::tools {
namespace {

// Sizes in pixels.
constexpr double margin = 28, panel_width = 340, panel_height = 190, gap_x = 26, gap_y = 62;
constexpr double left = 64, top = 112, bottom = 58;

// Distinct for colour-blind eyes too, in this order, and of similar weight on white and on near-black.
constexpr std::array<std::string_view, 8> colours{"#3f7fbf", "#e28f3d", "#4fa37a", "#9a77c7",
                                                  "#c95d63", "#7d8a99", "#c9ad3f", "#4bb0b8"};

constexpr std::string_view style = R"(
    text { font-family: system-ui, "Helvetica Neue", Helvetica, Arial, sans-serif; fill: #24292f; }
    .page { fill: #ffffff; }
    .title { font-size: 19px; font-weight: 600; }
    .quiet { font-size: 12px; fill: #6e7781; }
    .panel { font-size: 13px; font-weight: 600; }
    .value { font-size: 9px; fill: #57606a; }
    .grid { stroke: #d0d7de; stroke-width: 1; }
    .axis { stroke: #8c959f; stroke-width: 1; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .page { fill: #0d1117; }
      .quiet, .value { fill: #9198a1; }
      .grid { stroke: #2b323b; }
      .axis { stroke: #656c76; }
    }
)";

std::string escape(std::string_view text) {
  std::string safe;
  for (char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20) safe += c;
    }
  }
  return safe;
}

std::string text_at(double x, double y, std::string_view style_class, std::string_view anchor, std::string_view text) {
  return fmt::format("  <text x=\"{:.1f}\" y=\"{:.1f}\" class=\"{}\" text-anchor=\"{}\">{}</text>\n", x, y, style_class,
                     anchor, escape(text));
}

std::string line(double x1, double y1, double x2, double y2, std::string_view style_class) {
  return fmt::format("  <line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>\n", x1, y1, x2, y2,
                     style_class);
}

// The distance of gridlines, 1, 2 or 5 times a power of ten, that cuts `largest` into four to ten.
double nice_step(double largest) {
  const double power = std::pow(10, std::floor(std::log10(largest / 4)));
  for (double factor : {5.0, 2.0}) {
    if (factor * power <= largest / 4) return factor * power;
  }
  return power;
}

std::string short_number(double x) {
  if (x >= 100) return fmt::format("{:.0f}", x);
  return fmt::format("{:.3g}", x);
}

struct Scale {
  double step, largest;  // the axis runs from 0 to `largest`, a multiple of `step`
  double height(double value) const { return panel_height * value / largest; }
};

std::string draw_panel(const BarChart& chart, const BarChart::Panel& panel, double x, double y, const Scale& scale,
                       bool first_column) {
  const double floor = y + panel_height;
  std::string svg = text_at(x, y - 12, "panel", "start", panel.title);
  for (int tick = 0; tick * scale.step <= scale.largest * 1.0001; ++tick) {
    const double value = tick * scale.step, at = floor - scale.height(value);
    if (tick > 0) svg += line(x, at, x + panel_width, at, "grid");
    if (first_column) svg += text_at(x - 8, at + 4, "quiet", "end", short_number(value));
  }
  const double group_width = panel_width / static_cast<double>(chart.groups.size());
  const double bar_width = std::min(34.0, group_width * 0.8 / static_cast<double>(chart.series.size()));
  const double bars_width = bar_width * static_cast<double>(chart.series.size());
  for (std::size_t g = 0; g < chart.groups.size(); ++g) {
    const double centre = x + group_width * (static_cast<double>(g) + 0.5);
    svg += text_at(centre, floor + 17, "quiet", "middle", chart.groups[g]);
    for (std::size_t s = 0; s < chart.series.size(); ++s) {
      const double value = panel.values[s][g];
      if (value < 0) continue;
      const double at = centre - bars_width / 2 + bar_width * static_cast<double>(s), height = scale.height(value);
      svg += fmt::format(
          "  <rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"1.5\" fill=\"{}\">"
          "<title>{}, {}: {} {}</title></rect>\n",
          at + 0.75, floor - height, bar_width - 1.5, height, colours[s % colours.size()], escape(chart.series[s]),
          escape(chart.groups[g]), short_number(value), escape(chart.y_label));
      if (bar_width >= 15)
        svg += text_at(at + bar_width / 2, floor - height - 4, "value", "middle", short_number(value));
    }
  }
  return svg + line(x, floor, x + panel_width, floor, "axis");
}

}  // namespace

std::string to_svg(const BarChart& chart) {
  double largest = 0;
  for (const auto& panel : chart.panels) {
    for (const auto& values : panel.values) {
      for (double value : values) largest = std::max(largest, value);
    }
  }
  if (largest <= 0) largest = 1;
  const double step = nice_step(largest);
  const Scale scale{step, step * std::ceil(largest * 1.04 / step)};

  const std::size_t rows = (chart.panels.size() + chart.columns - 1) / chart.columns;
  const auto columns = static_cast<double>(chart.columns);
  const double width = left + columns * panel_width + (columns - 1) * gap_x + margin;
  const double height = top + static_cast<double>(rows) * (panel_height + gap_y) - gap_y + bottom;

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
      "role=\"img\">\n  <title>{2}</title>\n  <style>{3}  </style>\n"
      "  <rect width=\"100%\" height=\"100%\" class=\"page\"/>\n",
      width, height, escape(chart.title), style);
  svg += text_at(margin, 36, "title", "start", chart.title);
  svg += text_at(margin, 56, "quiet", "start", chart.subtitle);
  double legend_x = width - margin;
  for (std::size_t s = chart.series.size(); s-- > 0;) {
    legend_x -= 7.2 * static_cast<double>(chart.series[s].size());
    svg += text_at(legend_x, 80, "quiet", "start", chart.series[s]);
    svg += fmt::format("  <rect x=\"{:.1f}\" y=\"70\" width=\"11\" height=\"11\" rx=\"2\" fill=\"{}\"/>\n",
                       legend_x - 17, colours[s % colours.size()]);
    legend_x -= 36;
  }
  svg += text_at(margin, 80, "quiet", "start", chart.y_label);
  for (std::size_t p = 0; p < chart.panels.size(); ++p) {
    const std::size_t column = p % chart.columns, row = p / chart.columns;
    svg += draw_panel(chart, chart.panels[p], left + static_cast<double>(column) * (panel_width + gap_x),
                      top + static_cast<double>(row) * (panel_height + gap_y), scale, column == 0);
  }
  svg += text_at(left + (width - left - margin) / 2, height - 14, "quiet", "middle", chart.x_label);
  return svg + "</svg>\n";
}

}  // namespace flash3::tools
