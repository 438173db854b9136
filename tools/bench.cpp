// flash3 bench: speed over a grid of problems, as a table, JSON or a plot.
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>

#include "commands.h"
#include "flash3/check.h"
#include "flash3/version.h"
#include "inputs.h"
#include "io/error.h"
#include "json.h"
#include "options.h"
#include "plot.h"
#include "random.h"
#include "terminal.h"

extern char** environ;

namespace flash3::tools {
namespace {

enum class Mask { full, causal };
enum class Pass { forward, backward };

struct Flags {
  AttentionFlags attention;
  std::vector<std::int64_t> head_dims{64, 128, 256}, seqlens;
  std::vector<Mask> masks{Mask::full, Mask::causal};
  std::vector<Pass> passes{Pass::forward, Pass::backward};
  std::vector<DType> dtypes{DType::bfloat16};
  std::int64_t tokens = 0, hidden = 0, batch = 0, heads_q = 0, heads_kv = 0;
  std::int64_t runs = 5;
  double max_seconds = 90;
  bool paper = false, json = false;
  std::string plot;
};

// A GPU's grid, from the FlashAttention-3 paper, and one that a CPU ends in a minute or two.
struct Grid {
  std::int64_t tokens, hidden;
  std::vector<std::int64_t> seqlens;
};
const Grid paper_grid{16384, 2048, {512, 1024, 2048, 4096, 8192, 16384}};
const Grid cpu_grid{4096, 1024, {512, 1024, 2048, 4096}};

struct Point {
  Pass pass = Pass::forward;
  DType dtype = DType::bfloat16;
  Mask mask = Mask::full;
  std::int64_t head_dim = 0, seqlen = 0, batch = 0, heads_q = 0, heads_kv = 0;
  // Measured:
  std::string engine;
  double flops = 0;
  double seconds = -1;  // median; below 0: not run
  int runs = 0;
  std::string skipped;  // why not

  double rate() const { return seconds > 0 ? flops / seconds : -1; }
};

std::string_view name_of(Mask mask) { return mask == Mask::causal ? "causal" : "full"; }
std::string_view name_of(Pass pass) { return pass == Pass::forward ? "forward" : "backward"; }
std::string short_count(std::int64_t n) {
  return n >= 1024 && n % 1024 == 0 ? fmt::format("{}k", n / 1024) : fmt::format("{}", n);
}

std::vector<Point> make_points(const Flags& flags, const Grid& grid) {
  std::vector<Point> points;
  for (Pass pass : flags.passes) {
    for (DType dtype : flags.dtypes) {
      for (Mask mask : flags.masks) {
        for (std::int64_t head_dim : flags.head_dims) {
          for (std::int64_t seqlen : grid.seqlens) {
            Point p;
            p.pass = pass;
            p.dtype = dtype;
            p.mask = mask;
            p.head_dim = head_dim;
            p.seqlen = seqlen;
            p.batch = flags.batch > 0 ? flags.batch : std::max<std::int64_t>(1, grid.tokens / seqlen);
            p.heads_q = flags.heads_q > 0 ? flags.heads_q : std::max<std::int64_t>(1, grid.hidden / head_dim);
            p.heads_kv = flags.heads_kv > 0 ? flags.heads_kv : p.heads_q;
            points.push_back(p);
          }
        }
      }
    }
  }
  return points;
}

// A point's arguments, at addresses that are never touched.
ForwardArgs forward_arguments(const Point& p, const Flags& flags) {
  const Shape query{p.batch, p.seqlen, p.heads_q, p.head_dim}, key{p.batch, p.seqlen, p.heads_kv, p.head_dim};
  ForwardArgs args;
  args.query = placeholder(p.dtype, query, 0);
  args.key = placeholder(p.dtype, key, 1);
  args.value = placeholder(p.dtype, key, 2);
  args.out = placeholder(p.dtype, query, 3);
  args.lse = placeholder(row_dtype(p.dtype), {p.batch, p.heads_q, p.seqlen}, 4);
  args.options = flags.attention.options;
  args.options.causal = p.mask == Mask::causal;
  return args;
}

BackwardArgs backward_arguments(const ForwardArgs& f) {
  BackwardArgs b;
  b.query = f.query;
  b.key = f.key;
  b.value = f.value;
  b.out = f.out;
  b.lse = *f.lse;
  b.options = f.options;
  const auto like = [](const ConstTensorView& t, int number) {
    return placeholder(t.dtype, Shape(t.shape.begin(), t.shape.begin() + t.rank), number);
  };
  b.d_out = like(f.out, 5);
  b.d_query = like(f.query, 6);
  b.d_key = like(f.key, 7);
  b.d_value = like(f.value, 8);
  return b;
}

Plan plan_of(const Point& p, const Flags& flags) {
  const ForwardArgs f = forward_arguments(p, flags);
  const Execution& execution = flags.attention.execution;
  return p.pass == Pass::forward ? plan_forward(f, execution) : plan_backward(backward_arguments(f), execution);
}

// Replaces a placeholder by memory.
template <class View>
OwnedTensor materialise(View& view, Random* random) {
  OwnedTensor tensor(view.dtype, std::span(view.shape.data(), static_cast<std::size_t>(view.rank)));
  if (random) fill_normal(tensor.view, *random);
  view = tensor.view;
  return tensor;
}

// Runs a point: once to warm up, then until `runs` runs or `seconds` are spent, at least once. A warm-up that alone
// took the time is what is told.
void measure(Point& p, const Flags& flags, double seconds) {
  Random random(1);
  ForwardArgs f = forward_arguments(p, flags);
  std::vector<OwnedTensor> memory;
  memory.push_back(materialise(f.query, &random));
  memory.push_back(materialise(f.key, &random));
  memory.push_back(materialise(f.value, &random));
  memory.push_back(materialise(f.out, nullptr));
  memory.push_back(materialise(*f.lse, nullptr));
  const Execution& execution = flags.attention.execution;
  BackwardArgs b;
  if (p.pass == Pass::backward) {
    b = backward_arguments(f);
    memory.push_back(materialise(b.d_out, &random));
    memory.push_back(materialise(b.d_query, nullptr));
    memory.push_back(materialise(b.d_key, nullptr));
    memory.push_back(materialise(b.d_value, nullptr));
    forward(f, execution);
  }
  const auto run_once = [&] {
    const Stopwatch watch;
    if (p.pass == Pass::forward) {
      forward(f, execution);
    } else {
      backward(b, execution);
    }
    return watch.seconds();
  };
  const Stopwatch total;
  std::vector<double> times{run_once()};
  if (times.front() < seconds / 2) times.clear();
  while (times.size() < static_cast<std::size_t>(flags.runs) && (times.empty() || total.seconds() < seconds)) {
    times.push_back(run_once());
  }
  std::sort(times.begin(), times.end());
  p.seconds = times[times.size() / 2];
  p.runs = static_cast<int>(times.size());
}

std::string describe_machine(const HardwareReport& hardware, const Plan& plan) {
  std::string machine = fmt::format("{}, {:.3g} GHz, {} threads of {} cores", hardware.cpu.brand,
                                    hardware.cpu.clock_khz / 1e6, plan.num_threads, hardware.cpu.usable_cores);
  if (plan.engine == Engine::cuda && !hardware.cuda.gpus.empty()) machine = hardware.cuda.gpus.front().name;
  return fmt::format("flash3 {}.{}.{}, engine {}: {}; {}", FLASH3_VERSION_MAJOR, FLASH3_VERSION_MINOR,
                     FLASH3_VERSION_PATCH, name_of(plan.engine), plan.kernel, machine);
}

// The points as panels (a mask and head_dim each), groups (seqlens) and series (pass and dtype).
BarChart make_chart(const Flags& flags, const Grid& grid, const std::vector<Point>& points,
                    const std::string& machine) {
  double largest = 0;
  for (const Point& p : points) largest = std::max(largest, p.rate());
  const bool tera = largest >= 1e13;
  BarChart chart;
  chart.title = "Exact attention, forward and backward";
  if (flags.passes.size() == 1) chart.title = fmt::format("Exact attention, {}", name_of(flags.passes[0]));
  chart.subtitle = machine;
  chart.x_label = "seqlen";
  chart.y_label = tera ? "TFLOP/s" : "GFLOP/s";
  chart.columns = flags.head_dims.size();
  for (std::int64_t seqlen : grid.seqlens) chart.groups.push_back(short_count(seqlen));
  for (Pass pass : flags.passes) {
    for (DType dtype : flags.dtypes) chart.series.push_back(fmt::format("{} {}", name_of(pass), name_of(dtype)));
  }
  for (Mask mask : flags.masks) {
    for (std::int64_t head_dim : flags.head_dims) {
      BarChart::Panel panel{fmt::format("head_dim {}, {}", head_dim, name_of(mask)), {}};
      for (Pass pass : flags.passes) {
        for (DType dtype : flags.dtypes) {
          std::vector<double> values;
          for (const Point& p : points) {
            if (p.pass != pass || p.dtype != dtype || p.mask != mask || p.head_dim != head_dim) continue;
            values.push_back(p.rate() < 0 ? -1 : p.rate() / (tera ? 1e12 : 1e9));
          }
          panel.values.push_back(values);
        }
      }
      chart.panels.push_back(panel);
    }
  }
  return chart;
}

// rsvg-convert draws SVG as PNG; it is a small package, and no library of our own is worth having for this.
constexpr const char* svg_converter = "rsvg-convert";

bool is_installed(const char* program) {
  const char* variable = std::getenv("PATH");
  std::string_view path = variable ? variable : "";
  while (!path.empty()) {
    const auto folder = path.substr(0, path.find(':'));
    if (::access((std::filesystem::path(folder) / program).c_str(), X_OK) == 0) return true;
    path.remove_prefix(std::min(path.size(), folder.size() + 1));
  }
  return false;
}

void convert_to_png(const std::string& svg, const std::filesystem::path& png) {
  std::string pattern = (std::filesystem::temp_directory_path() / "flash3-plot.XXXXXX").string();
  const int descriptor = ::mkstemp(pattern.data());
  if (descriptor < 0) throw RuntimeFailure("--plot: no temporary file can be made");
  ::close(descriptor);
  const std::unique_ptr<const char, int (*)(const char*)> cleanup(pattern.c_str(), ::unlink);
  AtomicFile source(pattern);
  source.write(svg);
  source.commit();
  AtomicFile target(png);
  std::vector<std::string> words{svg_converter, "--zoom=2", "--format=png", "--output", target.temporary().string(),
                                 pattern};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t child = 0;
  int status = 0;
  if (::posix_spawnp(&child, svg_converter, nullptr, nullptr, arguments.data(), environ) != 0 ||
      ::waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw RuntimeFailure(fmt::format("--plot: {} failed", svg_converter));
  }
  target.commit();
}

void check_plot(const std::string& path) {
  if (path.empty()) return;
  const auto extension = std::filesystem::path(path).extension();
  if (extension != ".svg" && extension != ".png") {
    refuse("--plot: the name {} ends in '{}', accepted are .svg and .png", path, extension.string());
  }
  if (extension == ".png" && !is_installed(svg_converter)) {
    refuse("--plot: PNG needs {} (apt install librsvg2-bin); .svg needs nothing", svg_converter);
  }
  try {
    const AtomicFile trial(path);
  } catch (const InputError& problem) {
    refuse("--plot: {}", problem.what());
  }
}

void write_plot(const std::string& path, const std::string& svg) {
  if (std::filesystem::path(path).extension() == ".png") {
    convert_to_png(svg, path);
  } else {
    AtomicFile file(path);
    file.write(svg);
    file.commit();
  }
}

void print_table(const std::vector<Point>& points) {
  fmt::print("{:<9} {:<9} {:<7} {:>8} {:>7} {:>6} {:>6} {:>11} {:>5}  {}\n", "pass", "dtype", "mask", "head_dim",
             "seqlen", "batch", "heads", "time", "runs", "speed");
  for (const Point& p : points) {
    const std::string heads =
        p.heads_kv == p.heads_q ? fmt::format("{}", p.heads_q) : fmt::format("{}/{}", p.heads_q, p.heads_kv);
    fmt::print("{:<9} {:<9} {:<7} {:>8} {:>7} {:>6} {:>6} ", name_of(p.pass), name_of(p.dtype), name_of(p.mask),
               p.head_dim, p.seqlen, p.batch, heads);
    if (p.seconds < 0) {
      fmt::print("{:>11} {:>5}  {}\n", "-", "-", p.skipped);
    } else {
      fmt::print("{:>11} {:>5}  {}\n", text_of_seconds(p.seconds), p.runs, text_of_rate(p.rate()));
    }
  }
}

Json to_json(const Point& p) {
  Json json{{"pass", name_of(p.pass)}, {"dtype", name_of(p.dtype)}, {"mask", name_of(p.mask)}, {"head_dim", p.head_dim},
            {"seqlen", p.seqlen},      {"batch", p.batch},          {"heads_q", p.heads_q},    {"heads_kv", p.heads_kv},
            {"engine", p.engine},      {"flops", p.flops}};
  if (p.seconds < 0) {
    json["skipped"] = p.skipped;
  } else {
    json["seconds"] = p.seconds;
    json["runs"] = p.runs;
    json["flops_per_second"] = p.rate();
  }
  return json;
}

int bench(const Flags& flags) {
  check_plot(flags.plot);
  if (!(flags.max_seconds > 0)) refuse("--max-seconds: is {}, accepted is a positive number", flags.max_seconds);

  Grid grid = paper_grid;
  std::vector<Point> points = make_points(flags, grid);
  const Plan first = plan_of(points.front(), flags);
  const bool on_cpu = first.engine != Engine::cuda;
  if (on_cpu && !flags.paper) grid = cpu_grid;
  if (flags.tokens > 0) grid.tokens = flags.tokens;
  if (flags.hidden > 0) grid.hidden = flags.hidden;
  if (!flags.seqlens.empty()) grid.seqlens = flags.seqlens;
  points = make_points(flags, grid);
  double flops_left = 0;
  for (Point& p : points) {  // refuses what cannot run before anything does
    const Plan plan = plan_of(p, flags);
    p.engine = name_of(plan.engine);
    p.flops = plan.flops;
    flops_left += p.flops;
  }

  const HardwareReport hardware = check_hardware();
  const std::string machine = describe_machine(hardware, first);
  if (!flags.json) fmt::print("{}\n", machine), std::fflush(stdout);
  const Stopwatch total;
  {
    Progress progress(static_cast<int>(points.size()));
    double slowest_rate = 0;  // seen so far
    for (std::size_t i = 0; i < points.size(); ++i) {
      Point& p = points[i];
      const double left = flags.max_seconds - total.seconds();
      progress.show(static_cast<int>(i), fmt::format("{} {} {}, head_dim {}, seqlen {}", name_of(p.pass),
                                                     name_of(p.dtype), name_of(p.mask), p.head_dim, p.seqlen));
      // A point that is sure to overrun is left out; the first is always run, else there is nothing to judge by.
      if (i > 0 && (left <= 0 || p.flops / slowest_rate > left)) {
        p.skipped = fmt::format("left out: --max-seconds {:g}", flags.max_seconds);
      } else {
        measure(p, flags, left * p.flops / std::max(flops_left, 1.0));
        slowest_rate = slowest_rate > 0 ? std::min(slowest_rate, p.rate()) : p.rate();
      }
      flops_left -= p.flops;
    }
  }

  if (!flags.plot.empty()) write_plot(flags.plot, to_svg(make_chart(flags, grid, points, machine)));
  const auto skipped = std::count_if(points.begin(), points.end(), [](const Point& p) { return p.seconds < 0; });
  if (flags.json) {
    Json list = Json::array();
    for (const Point& p : points) list.push_back(to_json(p));
    Json json{{"machine", machine},
              {"cpu", hardware.cpu.brand},
              {"clock_khz", hardware.cpu.clock_khz},
              {"usable_cores", hardware.cpu.usable_cores},
              {"plan", tools::to_json(first)},
              {"seconds", total.seconds()},
              {"points", list}};
    if (!flags.plot.empty()) json["plot"] = flags.plot;
    print(json);
  } else {
    print_table(points);
    fmt::print("{} of {} problems in {}; times are medians after a warm-up\n",
               points.size() - static_cast<std::size_t>(skipped), points.size(), text_of_seconds(total.seconds()));
    if (!flags.plot.empty()) fmt::print("wrote {}\n", flags.plot);
  }
  return 0;
}

}  // namespace

Run add_bench(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  const std::string group = "Grid";
  add_choices(app, "--pass", flags->passes,
              {{"forward", static_cast<int>(Pass::forward)}, {"backward", static_cast<int>(Pass::backward)}},
              "passes, both if not given")
      ->group(group);
  add_choices(app, "--dtype", flags->dtypes, dtype_names(), "types, bfloat16 if not given")->group(group);
  add_choices(app, "--mask", flags->masks,
              {{"full", static_cast<int>(Mask::full)}, {"causal", static_cast<int>(Mask::causal)}},
              "masks, both if not given")
      ->group(group);
  add_counts(app, "--head-dim", flags->head_dims, "64,128,256 if not given")->group(group);
  add_counts(app, "--seqlen", flags->seqlens, "512,1k,2k,4k if not given; up to 16k on a GPU")->group(group);
  add_count(app, "--tokens", flags->tokens, "batch is tokens / seqlen; 4k if not given, 16k on a GPU")->group(group);
  add_count(app, "--hidden", flags->hidden, "heads are hidden / head_dim; 1k if not given, 2k on a GPU")->group(group);
  add_count(app, "--batch", flags->batch, "instead of --tokens")->group(group);
  add_count(app, "--heads-q", flags->heads_q, "instead of --hidden")->group(group);
  add_count(app, "--heads-kv", flags->heads_kv, "key heads; as many as query heads if not given")->group(group);
  app.add_flag("--paper", flags->paper, "the FlashAttention-3 paper's grid, on a CPU too")->group(group);
  flags->attention.add_execution_to(app);
  add_count(app, "--runs", flags->runs, "runs of each problem; 5 if not given");
  app.add_option("--max-seconds", flags->max_seconds, "share this time among the problems; 90 if not given")
      ->type_name("X");
  app.add_option("--plot", flags->plot, "draw grouped bars, FILE.svg or FILE.png")->type_name("FILE");
  app.add_flag("--json", flags->json, "print JSON");
  app.footer(
      "Examples:\n"
      "  flash3 bench --plot speed.svg\n"
      "  flash3 bench --pass forward --dtype float32,bfloat16 --head-dim 128 --seqlen 1k,8k --mask causal\n"
      "  flash3 bench --paper --max-seconds 3600 --json > paper.json");
  return [flags] { return bench(*flags); };
}

}  // namespace flash3::tools
