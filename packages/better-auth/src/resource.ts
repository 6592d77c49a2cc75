import { atom, onMount, type ReadableAtom } from "nanostores";

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

/** The state before anything was loaded; what a server renders. */
export const PENDING: Loaded<never> = { data: null, error: null, isPending: true };

/** A resource as its owner sees it. */
export interface OwnedResource<T> extends Resource<T> {
  /** Loads again, also if a request is in flight: its response may be older than the change. */
  reload(): void;
  /** Drops what was loaded and the response of a request that is in flight. */
  forget(): void;
}

/** @param changed is told each new state */
export function resource<T>(load: () => Promise<T>, changed: () => void): OwnedResource<T> {
  const state = atom<Loaded<T>>(PENDING);
  let request: Promise<void> | undefined;
  const set = (next: Loaded<T>) => {
    state.set(next);
    changed();
  };
  const start = () => {
    const settle = (next: Loaded<T>) => {
      if (mine !== request) return;
      request = undefined;
      set(next);
    };
    if (!state.value?.data) set(PENDING);
    const mine = load().then(
      (data) => settle({ data, error: null, isPending: false }),
      (error: UsageError) =>
        // Whoever may no longer read it should not go on seeing it.
        settle({ data: error.status === 401 || error.status === 403 ? null : (state.value?.data ?? null), error, isPending: false }),
    );
    return (request = mine);
  };
  const refetch = () => request ?? start();
  onMount(state, () => {
    if (typeof window !== "undefined") void refetch();
  });
  return {
    state,
    refetch,
    reload: () => void start(),
    forget() {
      request = undefined;
      set(PENDING);
    },
  };
}
