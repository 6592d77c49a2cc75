import { atom, onStart, type ReadableAtom } from "nanostores";
import { type OwnedResource, type Resource, resource, type UsageError } from "./resource.js";
import type { UsageData, UsageHistoryEntry } from "./types.js";

/** Whose history, and in which steps. */
export interface UsageHistoryQuery {
  /** The active organization unless given. */
  organizationId?: string | undefined;
  /** The number of entries, newest first; 30 unless given. */
  limit?: number | undefined;
  /** Periods that have ended unless given. */
  granularity?: "hour" | "day" | "period" | undefined;
}

/**
 * `authClient.$usageTracking`: atoms of nanostores.
 *
 * What has listeners is loaded again when the session or its organization changes, after resets and changes of limits,
 * and after other calls of the client, most of which are counted: usage at most once a second, history every five.
 */
export interface UsageTrackingAtoms {
  /** Loads when it gets its first listener. Until then, nothing used of no limit. */
  readonly usageAtom: ReadableAtom<UsageData>;
  /** Loads when it gets its first listener. Until then, empty. */
  readonly historyAtom: ReadableAtom<UsageHistoryEntry[]>;
  /** True until what was asked for is there or has failed; stays false while it is loaded again. */
  readonly loadingAtom: ReadableAtom<boolean>;
  readonly errorAtom: ReadableAtom<UsageError | null>;
  /** Makes `usageAtom` that of an organization, the active one unless given, and loads it. Never rejects. */
  fetchUsage(organizationId?: string): Promise<void>;
  /** Makes `historyAtom` the answer to a query, and loads it. Never rejects. */
  fetchUsageHistory(query?: UsageHistoryQuery): Promise<void>;
  /** The usage of an organization, the active one unless given, whatever `usageAtom` shows. */
  usageOf(organizationId?: string): Resource<UsageData>;
  /** The answer to a query, whatever `historyAtom` shows. */
  historyOf(query?: UsageHistoryQuery): Resource<UsageHistoryEntry[]>;
}

/** Usage and history are loaded at most this often, in milliseconds, because of calls of the client. History lags. */
const USAGE_INTERVAL = 1_000;
const HISTORY_INTERVAL = 5_000;
/** Better Auth signals a changed session 10 ms after the response that changed it; one request serves both. */
const SIGNAL_DELAY = 25;

const NO_USAGE: UsageData = {
  api: { current: 0, limit: Infinity, resetDate: null },
  features: null,
  planId: "",
  resetMode: "lazy",
  resetPeriod: "monthly",
};

/** All that a client has loaded. */
export interface Store {
  atoms: UsageTrackingAtoms;
  /** A call was made that may be counted. */
  called(): void;
  /** A count or a limit has changed. */
  changed(): void;
  /** The session has changed, and with it who may see what. */
  sessionChanged(): void;
}

export function createStore(
  getUsage: (query: { organizationId?: string | undefined }) => Promise<UsageData>,
  getHistory: (query: UsageHistoryQuery) => Promise<UsageHistoryEntry[]>,
): Store {
  const loadingAtom = atom(true);
  const errorAtom = atom<UsageError | null>(null);
  const publish = () => {
    const states = [usage, history].flatMap((it) => it.shown()?.state.value ?? []);
    loadingAtom.set(states.some((it) => it.isPending));
    errorAtom.set(states.find((it) => it.error)?.error ?? null);
  };
  const usage = createShelf(getUsage, NO_USAGE, publish);
  const history = createShelf(getHistory, [], publish);
  const historyQuery = ({ organizationId, limit, granularity }: UsageHistoryQuery = {}) => ({ organizationId, limit, granularity });

  const refreshUsage = atMostEvery(USAGE_INTERVAL, SIGNAL_DELAY, usage);
  const refreshHistory = atMostEvery(HISTORY_INTERVAL, HISTORY_INTERVAL, history);
  return {
    atoms: {
      usageAtom: usage.atom,
      historyAtom: history.atom,
      loadingAtom,
      errorAtom,
      fetchUsage: (organizationId) => usage.show({ organizationId }),
      fetchUsageHistory: (query) => history.show(historyQuery(query)),
      usageOf: (organizationId) => usage.of({ organizationId }),
      historyOf: (query) => history.of(historyQuery(query)),
    },
    called() {
      refreshUsage.soon();
      refreshHistory.soon();
    },
    changed() {
      usage.reload();
      history.reload();
    },
    sessionChanged() {
      refreshUsage.cancel();
      refreshHistory.cancel();
      usage.forget();
      history.forget();
    },
  };
}

/** Loads what has listeners again, after a delay and not too often, however often it is asked to. */
function atMostEvery(interval: number, delay: number, shelf: { watched(): unknown[]; reload(): void }) {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let last = 0;
  const refresh = () => {
    timer = undefined;
    last = Date.now();
    shelf.reload();
  };
  return {
    soon() {
      if (shelf.watched().length) timer ??= setTimeout(refresh, Math.max(delay, last + interval - Date.now()));
    },
    cancel() {
      clearTimeout(timer);
      timer = undefined;
    },
  };
}

/** Resources of one kind by query, and an atom that shows one of them. */
function createShelf<Q extends object, T>(load: (query: Q) => Promise<T>, empty: T, changed: () => void) {
  const resources = new Map<string, OwnedResource<T>>();
  const shownAtom = atom<T>(empty);
  let shown: OwnedResource<T> | undefined;

  const publish = () => {
    shownAtom.set(shown?.state.value?.data ?? empty);
    changed();
  };
  const of = (query: Q) => {
    const key = JSON.stringify(query);
    const known = resources.get(key);
    if (known) return known;
    const made: OwnedResource<T> = resource(() => load(query), () => made === shown && publish());
    resources.set(key, made);
    return made;
  };
  const show = (query: Q) => {
    shown = of(query);
    publish();
    return shown.refetch();
  };
  const watched = () => [...resources.values()].filter((it) => it.state.lc > 0 || (it === shown && shownAtom.lc > 0));
  const reload = () => watched().forEach((it) => it.reload());

  onStart(shownAtom, () => {
    if (typeof window === "undefined") return;
    // A component that subscribes often says in the same turn what to show, and so loads it.
    const before = shown;
    setTimeout(() => {
      if (shown === before) void (shown?.refetch() ?? show({} as Q));
    });
  });
  return {
    atom: shownAtom,
    of,
    show,
    shown: () => shown,
    watched,
    reload,
    forget() {
      resources.forEach((it) => it.forget());
      reload();
    },
  };
}
