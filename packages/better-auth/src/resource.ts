import { atom, onStart, type ReadableAtom } from "nanostores";

/** Why something could not be loaded: a `BetterFetchError` if the auth server answered, else what `fetch` threw. */
export type UsageError = Error & { status?: number; statusText?: string; error?: { code?: string; message?: string } };

/** Something that is loaded from the auth server. Data stays while it is loaded again, and if that fails. */
export interface Loaded<T> {
  data: T | null;
  /** Of the last attempt. */
  error: UsageError | null;
  /** True until there is data or an error. */
  isPending: boolean;
}

/** Data of the auth server that any number of readers share. */
export interface Resource<T> {
  /** Loads when it gets its first listener. */
  readonly state: ReadableAtom<Loaded<T>>;
  /** Loads again; calls at the same time share a request. Never rejects: a failure becomes the state's `error`. */
  refetch(): Promise<void>;
}

/** Milliseconds after which what has listeners and failed on the server's side, or on the way, is loaded again; doubles each time. */
const FIRST_RETRY = 2_000;
const LAST_RETRY = 60_000;

/** The state before anything was loaded; what a server renders. */
export const PENDING: Loaded<never> = { data: null, error: null, isPending: true };

/** A resource as its owner sees it. */
export interface OwnedResource<T> extends Resource<T> {
  /** Loads again, also if a request is in flight: its response may be older than the change. */
  reload(): void;
  /** Drops what was loaded and the response of a request that is in flight. */
  forget(): void;
}

/** @param changed called after each change of the state */
export function resource<T>(load: () => Promise<T>, changed: () => void): OwnedResource<T> {
  const state = atom<Loaded<T>>(PENDING);
  let request: Promise<void> | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let wait = FIRST_RETRY;
  const set = (next: Loaded<T>) => {
    state.set(next);
    changed();
  };
  const start = () => {
    clearTimeout(timer);
    if (!state.value?.data) set(PENDING);
    const mine = load().then(
      (data) => {
        if (mine !== request) return;
        request = undefined;
        wait = FIRST_RETRY;
        set({ data, error: null, isPending: false });
      },
      (error: UsageError) => {
        if (mine !== request) return;
        request = undefined;
        const { status = 500 } = error;
        if (status >= 500) {
          timer = setTimeout(() => state.lc && start(), wait);
          wait = Math.min(wait * 2, LAST_RETRY);
        }
        // A user who may no longer read it should not go on seeing it.
        const data = status === 401 || status === 403 ? null : (state.value?.data ?? null);
        set({ data, error, isPending: false });
      },
    );
    return (request = mine);
  };
  const refetch = () => request ?? start();
  onStart(state, () => {
    if (typeof window !== "undefined") void refetch();
  });
  return {
    state,
    refetch,
    reload: () => void start(),
    forget() {
      clearTimeout(timer);
      request = undefined;
      set(PENDING);
    },
  };
}
