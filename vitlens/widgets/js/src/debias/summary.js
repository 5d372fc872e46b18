// The effect of the choice in sentences, which screen readers announce when they change.

/** @import { Model } from "../lib/types" */
import { counted, fill, h } from "../lib/dom.js";
import { same } from "../lib/model.js";
import { accuracy, chosen, features, points, verb } from "./request.js";

/** @param {Model} model */
export function summary(model) {
  const main = h("p", { class: "vl-debias-main" });
  const damage = h("p", { class: "vl-debias-damage" });
  const element = h("div", { class: "vl-debias-summary", role: "status", "aria-live": "polite" }, main, damage);
  let last = "";
  return {
    element,
    update() {
      const report = model.get("report") ?? {};
      if (!report.groups) return;
      const pending = !same(report.chosen, chosen(model));
      // Announced once per report, not with every interim figure.
      const state = JSON.stringify([report, pending]);
      if (state === last) return;
      last = state;
      element.classList.toggle("vl-debias-pending", pending);
      const { worst, worst_before: was, average, collateral } = report;
      const n = report.chosen.length;
      if (!n) {
        fill(
          main,
          h("strong", {}, `No features ${verb(model).done}. `),
          `Worst group: ${was.name}, ${accuracy(was.before.accuracy)}; average ${accuracy(average.accuracy)}.`,
        );
        fill(damage, pending && "Computing …");
        return;
      }
      fill(
        main,
        h("strong", {}, `${features(n)} ${verb(model).done}. `),
        `Worst group: ${was.name} ${accuracy(was.before.accuracy)} → ${worst.name} ${accuracy(worst.accuracy)}; `,
        `average ${accuracy(average.before.accuracy)} → ${accuracy(average.accuracy)} (${points(average.change)} points).`,
      );
      const lost = report.groups.filter((/** @type {any} */ row) => row.change < 0);
      fill(
        damage,
        pending
          ? "Computing …"
          : [
              h("span", {}, "Collateral damage: "),
              collateral.length
                ? h(
                    "strong",
                    { class: "vl-debias-loss" },
                    collateral
                      .map((/** @type {[string, number]} */ [name, x]) => {
                        const row = lost.find((/** @type {any} */ r) => r.name === name);
                        const fewer = row.before.right - row.right;
                        return `${name} ${points(x)} points (${fewer} of ${counted(row.count, "image")})`;
                      })
                      .join("; "),
                  )
                : "no group has a lower accuracy.",
            ],
      );
    },
  };
}

/** The main figures in one line. @param {Model} model */
export function summaryLine(model) {
  const { worst, average, collateral } = model.get("report") ?? {};
  if (!worst) return "";
  const lost = collateral.length ? `; ${collateral[0][0]} ${points(collateral[0][1])}` : "";
  const more = collateral.length > 1 ? ` and ${collateral.length - 1} more` : "";
  return `worst group ${accuracy(worst.accuracy)} (was ${accuracy(model.get("report").worst_before.before.accuracy)}), average ${accuracy(average.accuracy)}${lost}${more}`;
}
