import { createTallyman as create } from "@tallyman/client";

/** A client whose calls have the time that a machine with other work may need. */
export const createTallyman = (options) => create({ timeout: 120_000, ...options });
