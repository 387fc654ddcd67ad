// A model small enough for unit tests, resolved as the trainer expects it.
#pragma once

#include "config/run_config.pb.h"

namespace farspan::testing {

inline config::RunConfig tiny_config(std::string_view precision = "fp32") {
  config::RunConfig c;
  c.set_seed(3);
  auto& m = *c.mutable_model();
  m.set_vocab_size(40);
  m.set_hidden_size(32);
  m.set_intermediate_size(48);
  m.set_num_hidden_layers(2);
  m.set_num_attention_heads(4);
  m.set_num_key_value_heads(2);
  m.set_head_dim(8);
  m.set_tie_word_embeddings(true);
  m.set_initializer_range(0.2);  // large enough for gradients that finite differences can see
  m.mutable_rope()->mutable_scaling();
  auto& t = *c.mutable_train();
  t.set_sequence_length(48);
  t.set_micro_batch(1);
  t.set_batch_tokens(96);
  t.set_steps(4);
  t.set_precision(std::string(precision));
  auto& o = *c.mutable_optimizer();
  o.add_betas(0.9);
  o.add_betas(0.95);
  c.mutable_schedule();
  auto& p = *c.mutable_parallel();
  p.set_data(1);
  p.set_context(1);
  c.mutable_positions();
  c.mutable_data();
  c.mutable_checkpoint();
  c.mutable_evaluation()->set_every(1);  // dry runs size scratch for evaluation too
  c.mutable_logging();
  c.mutable_curriculum();
  return c;
}

}  // namespace farspan::testing
