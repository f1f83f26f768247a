//! A finite automaton over bytes that knows the shortest way to its end from everywhere.
//!
//! Made from llguidance's own lexer for one string, number, regex or choice list, so that the mask and the closing agree by construction.

use std::collections::VecDeque;

use llguidance::{
    api::{GrammarInit, GrammarWithLexer, TopLevelGrammar},
    earley::regexvec::{LexemeSet, RegexVec, StateID},
};

use super::{
    error::{guarded, refuse},
    limits::{MAX_AUTOMATON_STATES, parser_limits},
};
use crate::Result;

/// A state that the automaton can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct State(u32);

const DEAD: u32 = u32::MAX;
const UNREACHED: u32 = u32::MAX;

/// Bytes that shortest ways are written with, where there is a choice.
const PREFERRED_BYTES: &[u8] = b"\"0ax1A- ";

/// All states at once: nothing is computed after it is made.
#[derive(Debug)]
pub(super) struct Automaton {
    /// Bytes that no state tells apart share a class.
    class_of: [u8; 256],
    /// The byte that stands for a class in a shortest way, and how many bytes the class has.
    class_byte: Vec<(u8, u32)>,
    /// `[num_states, num_classes]`.
    next: Vec<u32>,
    /// Bytes to the nearest accepting state: 0 in an accepting one.
    distance: Vec<u32>,
    /// True where only one text leads to an end: nothing is left to choose.
    forced: Vec<bool>,
}

impl Automaton {
    /// The automaton of a grammar that llguidance reads as a single lexeme.
    ///
    /// # Errors
    /// [`crate::EngineError::Grammar`] when llguidance refuses it, nothing matches it or it has too many states; `at` is its place.
    pub fn of(grammar: GrammarWithLexer, at: &str) -> Result<Self> {
        let mut lexer = guarded(at, || {
            let init = GrammarInit::Serialized(TopLevelGrammar::from_grammar(grammar));
            let (_, spec) = init.to_internal(None, parser_limits()).map_err(|error| error.to_string())?;
            let vec = spec.to_regex_vec(&mut parser_limits()).map_err(|error| error.to_string())?;
            let mut lexemes = LexemeSet::new(spec.lexemes.len());
            let words = (0..spec.lexemes.len()).map(llguidance::earley::lexerspec::LexemeIdx::new);
            words.filter(|idx| !spec.skip_by_class.contains(idx)).for_each(|idx| lexemes.add(idx));
            Ok((vec, lexemes))
        })?;
        let automaton = guarded(at, move || explore(&mut lexer.0, &lexer.1))?;
        if automaton.distance[0] == UNREACHED {
            return Err(refuse(at, "no text matches it".into()));
        }
        Ok(automaton)
    }

    /// The state before the first byte.
    pub fn start(&self) -> State {
        State(0)
    }

    /// The state after `bytes`; `None` when nothing that the automaton accepts goes on like this.
    pub fn run(&self, from: State, bytes: &[u8]) -> Option<State> {
        let mut state = from.0;
        for &byte in bytes {
            state = self.next[self.cell(state, self.class_of[byte as usize] as usize)];
            if state == DEAD {
                return None;
            }
        }
        (self.distance[state as usize] != UNREACHED).then_some(State(state))
    }

    /// True for a whole text.
    pub fn accepts(&self, bytes: &[u8]) -> bool {
        self.run(self.start(), bytes).is_some_and(|state| self.is_accepting(state))
    }

    /// True when the text may end here.
    pub fn is_accepting(&self, state: State) -> bool {
        self.distance[state.0 as usize] == 0
    }

    /// True when there is only one way to end from here.
    pub fn is_forced(&self, state: State) -> bool {
        self.forced[state.0 as usize]
    }

    /// Appends the shortest text that leads to an end.
    pub fn complete(&self, from: State, out: &mut Vec<u8>) {
        let mut state = from.0;
        while self.distance[state as usize] > 0 {
            let nearest = (0..self.class_byte.len())
                .min_by_key(|&class| (self.distance_after(state, class), self.preference(class)));
            // Every state that `run` returns has a way to an end, so there is a class, and the distance falls by one a turn.
            let Some(class) = nearest else { return };
            out.push(self.class_byte[class].0);
            state = self.next[self.cell(state, class)];
        }
    }

    /// Transitions stored.
    pub fn size(&self) -> usize {
        self.next.len()
    }

    fn preference(&self, class: usize) -> usize {
        let byte = self.class_byte[class].0;
        PREFERRED_BYTES.iter().position(|&preferred| preferred == byte).unwrap_or(PREFERRED_BYTES.len())
    }

    fn cell(&self, state: u32, class: usize) -> usize {
        state as usize * self.class_byte.len() + class
    }

    fn distance_after(&self, state: u32, class: usize) -> u32 {
        match self.next[self.cell(state, class)] {
            DEAD => UNREACHED,
            next => self.distance[next as usize],
        }
    }

    fn num_states(&self) -> usize {
        self.distance.len()
    }

    /// Fills `distance`, breadth first from the accepting states backwards.
    fn measure(&mut self, accepting: &[bool]) {
        let mut into: Vec<Vec<u32>> = vec![Vec::new(); self.num_states()];
        for state in 0..self.num_states() as u32 {
            for class in 0..self.class_byte.len() {
                let next = self.next[self.cell(state, class)];
                if next != DEAD && into[next as usize].last() != Some(&state) {
                    into[next as usize].push(state);
                }
            }
        }
        let mut open: VecDeque<u32> =
            (0..self.num_states() as u32).filter(|&state| accepting[state as usize]).collect();
        open.iter().for_each(|&state| self.distance[state as usize] = 0);
        while let Some(state) = open.pop_front() {
            for &before in &into[state as usize] {
                if self.distance[before as usize] == UNREACHED {
                    self.distance[before as usize] = self.distance[state as usize] + 1;
                    open.push_back(before);
                }
            }
        }
    }

    /// Fills `forced`: nearest states first, as a forced state's only successor is one byte nearer.
    fn mark_forced(&mut self) {
        let mut nearest_first: Vec<u32> = (0..self.num_states() as u32).collect();
        nearest_first.sort_by_key(|&state| self.distance[state as usize]);
        for state in nearest_first {
            let classes =
                (0..self.class_byte.len()).filter(|&class| self.distance_after(state, class) != UNREACHED);
            let live: Vec<usize> = classes.take(2).collect();
            self.forced[state as usize] = match (self.distance[state as usize], live.as_slice()) {
                (0, live) => live.is_empty(),
                (_, &[class]) => {
                    let next = self.next[self.cell(state, class)];
                    self.class_byte[class].1 == 1 && self.forced[next as usize]
                }
                _ => false,
            };
        }
    }
}

/// Visits every state of the lazy lexer.
fn explore(lexer: &mut RegexVec, lexemes: &LexemeSet) -> Result<Automaton, String> {
    lexer.set_max_states(MAX_AUTOMATON_STATES + 8);
    lexer.set_fuel(parser_limits().initial_lexer_fuel);
    let class_of: [u8; 256] = std::array::from_fn(|byte| lexer.alpha().map(byte as u8) as u8);
    let num_classes = class_of.iter().map(|&class| class as usize + 1).max().unwrap_or(1);
    let class_byte = representatives(&class_of, num_classes);
    let mut automaton =
        Automaton { class_of, class_byte, next: Vec::new(), distance: Vec::new(), forced: Vec::new() };
    let mut known = std::collections::HashMap::new();
    let mut states = vec![lexer.initial_state(lexemes)];
    known.insert(states[0], 0_u32);
    let mut accepting = Vec::new();
    let mut state_idx = 0;
    while state_idx < states.len() {
        let state = states[state_idx];
        accepting.push(lexer.state_desc(state).greedy_accepting.is_some());
        for class in 0..num_classes {
            let next = match automaton.class_byte[class].1 {
                0 => StateID::DEAD,
                _ => lexer.transition(state, automaton.class_byte[class].0),
            };
            automaton.next.push(if next.is_dead() {
                DEAD
            } else {
                *known.entry(next).or_insert_with(|| {
                    states.push(next);
                    states.len() as u32 - 1
                })
            });
        }
        if lexer.has_error() || states.len() > MAX_AUTOMATON_STATES {
            return Err(format!(
                "it takes more than {MAX_AUTOMATON_STATES} states to recognize: shorten its repetitions or simplify its pattern"
            ));
        }
        state_idx += 1;
    }
    automaton.distance = vec![UNREACHED; states.len()];
    automaton.forced = vec![false; states.len()];
    automaton.measure(&accepting);
    automaton.mark_forced();
    Ok(automaton)
}

/// Of every class, the byte to write and the number of bytes.
fn representatives(class_of: &[u8; 256], num_classes: usize) -> Vec<(u8, u32)> {
    let mut found = vec![(0, 0); num_classes];
    let readable = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b' ';
    let order = PREFERRED_BYTES.iter().copied();
    let order = order.chain((0..=255).filter(readable)).chain(b'!'..=b'~').chain(0..=255);
    for byte in order {
        let entry = &mut found[class_of[byte as usize] as usize];
        if entry.1 == 0 {
            *entry = (byte, 1);
        }
    }
    for (class, entry) in found.iter_mut().enumerate() {
        entry.1 = class_of.iter().filter(|&&of| of as usize == class).count() as u32;
    }
    found
}
