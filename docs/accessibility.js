// axe-core's checks (contrast, alternative texts, landmarks, names) of pages, in light and dark:
//     npm install playwright-core axe-core && node docs/accessibility.js site/index.html bench/results/gowalla/index.html
// Ends with 1 where something is found. CHROMIUM names the browser, /usr/bin/chromium by default.
const { chromium } = require("playwright-core");
const fs = require("fs");
const path = require("path");

(async () => {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  });
  const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
  let found = 0;
  for (const colorScheme of ["light", "dark"])
    for (const name of process.argv.slice(2)) {
      const page = await browser.newPage({ colorScheme });
      await page.goto("file://" + path.resolve(name));
      await page.evaluate(axe);
      const { passes, violations } = await page.evaluate(() => globalThis.axe.run());
      console.log(`${colorScheme} ${name}: ${passes.length} passed, ${violations.length} failed`);
      for (const { id, nodes } of violations)
        for (const node of nodes) console.log(`  ${id}: ${node.html.slice(0, 120)}: ${(node.any[0] || {}).message}`);
      found += violations.length;
      await page.close();
    }
  await browser.close();
  process.exit(found ? 1 : 0);
})();
