// A list of which only what is in view is in the page: thousands of items of heights that are known once they were seen.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";

const OVERSCAN_PX = 900;

class Heights {
  constructor(estimates) {
    this.heights = Float64Array.from(estimates);
    this.known = new Uint8Array(estimates.length);
    this.tops = new Float64Array(estimates.length + 1);
    this.sum(0);
  }
  sum(from) {
    for (let i = from; i < this.heights.length; i++) this.tops[i + 1] = this.tops[i] + this.heights[i];
  }
  at(offset) {
    let low = 0;
    let high = this.heights.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.tops[middle] <= offset) low = middle;
      else high = middle - 1;
    }
    return Math.max(0, low);
  }
  grown(estimates) {
    const next = new Heights(estimates);
    for (let i = 0; i < Math.min(this.known.length, estimates.length); i++)
      if (this.known[i]) {
        next.heights[i] = this.heights[i];
        next.known[i] = 1;
      }
    next.sum(0);
    return next;
  }
}

export function VirtualList({ count, estimate, item, onRange, handle }) {
  const box = useRef(null);
  const heights = useRef(null);
  const [range, setRange] = useState([0, 0]);
  const [, redraw] = useState(0);
  useMemo(() => {
    const estimates = Array.from({ length: count }, (_, i) => estimate(i));
    heights.current = heights.current ? heights.current.grown(estimates) : new Heights(estimates);
  }, [count]);

  const look = () => {
    if (!box.current) return;
    const { scrollTop, clientHeight } = box.current;
    const first = heights.current.at(scrollTop - OVERSCAN_PX);
    const last = Math.min(count, heights.current.at(scrollTop + clientHeight + OVERSCAN_PX) + 1);
    setRange((old) => (old[0] === first && old[1] === last ? old : [first, last]));
    if (onRange) onRange(first, last, heights.current.at(scrollTop + 4), heights.current.at(scrollTop + clientHeight - 4));
  };

  const observer = useMemo(
    () =>
      new ResizeObserver((entries) => {
        const sizes = heights.current;
        let from = Infinity;
        let shift = 0;
        for (const entry of entries) {
          const index = Number(entry.target.dataset.index);
          const height = entry.target.offsetHeight;
          if (!entry.target.isConnected || !height || index >= sizes.heights.length) continue;
          const change = height - sizes.heights[index];
          sizes.known[index] = 1;
          if (Math.abs(change) < 0.5) continue;
          // What grows above the view must not push what is read out of it.
          if (box.current && sizes.tops[index] + sizes.heights[index] <= box.current.scrollTop + 1) shift += change;
          sizes.heights[index] = height;
          from = Math.min(from, index);
        }
        if (from === Infinity || !box.current) return;
        sizes.sum(from);
        if (shift) box.current.scrollTop += shift;
        redraw((n) => n + 1);
        look();
      }),
    [],
  );
  useEffect(() => () => observer.disconnect(), []);
  useLayoutEffect(() => {
    look();
    const resized = new ResizeObserver(look);
    resized.observe(box.current);
    return () => resized.disconnect();
  }, [count]);
  if (handle)
    handle.current = {
      show: (index) => {
        box.current.scrollTop = heights.current.tops[Math.max(0, Math.min(index, count - 1))];
        look();
      },
    };

  const items = [];
  for (let i = range[0]; i < Math.min(range[1], count); i++)
    items.push(<Item key={i} index={i} top={heights.current.tops[i]} observer={observer}>{item(i)}</Item>);
  return (
    <div class="virtual" ref={box} onScroll={look} tabIndex={0} data-testid="virtual">
      <div class="virtual-all" style={{ height: `${heights.current.tops[count] || 0}px` }}>{items}</div>
    </div>
  );
}

function Item({ index, top, observer, children }) {
  const element = useRef(null);
  useLayoutEffect(() => {
    const node = element.current;
    observer.observe(node);
    return () => observer.unobserve(node);
  }, [index]);
  return (
    <div class="virtual-item" ref={element} data-index={index} style={{ transform: `translateY(${top}px)` }}>
      {children}
    </div>
  );
}
