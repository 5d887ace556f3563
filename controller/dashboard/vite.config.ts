import { defineConfig } from "vite";

// One page, its hashed assets beside it; nothing is fetched from elsewhere at run time.
export default defineConfig({
  build: { target: "es2022", outDir: "dist", emptyOutDir: true, assetsInlineLimit: 0 },
  // `npm run dev` against a controller on its usual port, whose certificate is its own.
  server: { proxy: { "/api": { target: "https://127.0.0.1:7444", secure: false } } },
});
