"""Public cases: what real files and habits do, and the test that asserts the right outcome of each.

The cases come from public bug reports of programs like this one. The tests lie beside the modules
that own the rules; this table says which case each of them covers, so that none is lost.
"""

# ruff: noqa: E501 - a case and its test are one line.

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
TABLES, CHATS, TEMPLATES = (
    "data/test_tables.py",
    "data/test_chats.py",
    "data/test_chat_templates.py",
)
ARGUMENTS, PREDICTING = "training/test_arguments.py", "inference/test_predicting.py"
CONFIGS, LANGUAGE, LABELS = (
    "models/test_configs.py",
    "tasks/test_causal_lm.py",
    "data/test_image_labels.py",
)

# section: case: path of a file below tests/::function
CASES: dict[str, dict[str, str]] = {
    "tables": {
        "stray quotes in a TSV": f"{TABLES}::test_quotes_that_are_part_of_texts_swallow_no_rows",
        "labels as lists of one": f"{TABLES}::test_a_list_of_one_label_is_the_label",
        "labels as lists of several or dicts": f"{TABLES}::test_labels_that_are_no_classes_are_an_error",
        "labels as booleans and numbers": f"{TABLES}::test_numbers_and_booleans_are_one_class_however_written",
        "labels in different case": f"{TABLES}::test_names_that_differ_only_in_case_are_a_warning_and_can_be_joined",
        "multi-hot labels": f"{TABLES}::test_multi_hot_labels_are_decoded",
        "one 0/1 column a label": f"{TABLES}::test_several_columns_of_0_and_1_are_labels",
        "another separator of labels": f"{TABLES}::test_labels_with_another_separator_are_an_error_that_names_it",
        "a text column of lists or dicts": f"{TABLES}::test_a_text_that_is_a_list_of_words_is_joined_and_one_of_objects_an_error",
        "an empty second text in training": f"{TABLES}::test_an_empty_second_text_is_legal_and_empty",
        "an empty second text at prediction": f"{PREDICTING}::test_a_missing_second_text_is_empty",
        "other delimiters and sep=": f"{TABLES}::test_how_a_table_is_written_is_found_and_said",
        "a delimiter that is named": f"{TABLES}::test_a_delimiter_that_is_named_is_taken",
        "compressed files": f"{TABLES}::test_a_compressed_table_is_read",
        "Excel": f"{TABLES}::test_an_excel_sheet_is_read",
        "Arrow and save_to_disk": f"{TABLES}::test_a_saved_data_set_is_read",
        "JSON arrays and columns": f"{TABLES}::test_json_is_rows_or_columns",
        "JSON that is no table": f"{TABLES}::test_json_that_is_no_table_is_one_short_line",
        "cp1252 read as latin-1": f"{TABLES}::test_cp1252_that_is_read_as_latin1_is_a_warning",
        "cp1252 and UTF-16": f"{TABLES}::test_the_encoding_is_detected_and_said",
        "spellings of UTF-16": f"{TABLES}::test_an_encoding_may_be_named_in_any_spelling",
        "empty columns and rows": f"{TABLES}::test_how_a_table_is_written_is_found_and_said",
        "an unused column twice": f"{TABLES}::test_only_columns_that_are_used_have_to_be_unique",
        "an empty label among few rows": f"{TABLES}::test_a_few_unusable_rows_are_set_aside_whatever_their_share",
        "no header": f"{TABLES}::test_a_table_without_a_header_is_said_and_read",
        "backslash-escaped quotes": f"{TABLES}::test_backslash_escaped_quotes_are_read_and_said",
        "a space after the comma": f"{TABLES}::test_how_a_table_is_written_is_found_and_said",
        "a header in another case": f"{TABLES}::test_a_name_that_differs_in_case_or_blanks_is_taken_and_said",
        "a lone surrogate": f"{TABLES}::test_half_of_a_surrogate_pair_is_replaced_and_counted",
        "a JSON key twice": f"{TABLES}::test_a_key_that_is_given_twice_is_an_error_with_its_line",
        "several files": f"{TABLES}::test_several_files_are_one_table",
        "unquoted globs": f"{TABLES}::test_the_files_of_an_unquoted_pattern_are_one_value",
        "a folder of the hub's names": f"{TABLES}::test_a_folder_is_read_by_the_hubs_names",
        "slices of splits": f"{TABLES}::test_a_part_of_a_split",
        "a test file without labels": f"{TABLES}::test_a_test_file_without_labels_is_to_be_predicted",
        "a class of one row": f"{TABLES}::test_a_class_of_one_row_stays_in_train_and_the_others_are_stratified",
        "targets with signs and commas": f"{TABLES}::test_a_decimal_comma_is_read_when_named",
    },
    "recipes and flags": {
        "attention dropout of every family": f"{CONFIGS}::test_the_template_turns_attention_dropout_off_in_every_family",
        "the template with any checkpoint": f"{CONFIGS}::test_the_template_trains_any_checkpoint",
        "RoBERTa's positions": "models/test_positions.py::test_a_text_longer_than_robertas_positions_is_refused_with_their_number",
        "a head with names in another order": f"{CONFIGS}::test_rows_of_a_head_follow_its_label_names",
        "metric_for_best_model f1": "training/test_best_model.py::test_a_metric_that_is_not_measured_is_refused_with_those_that_are",
        "former names of keys": f"{ARGUMENTS}::test_a_former_name_is_told_what_became_of_it",
        "keys that are no key's neighbour": f"{ARGUMENTS}::test_what_is_not_near_is_not_suggested",
        "do_train": f"{ARGUMENTS}::test_what_happens_anyway_may_be_asked_for",
        "early stopping": f"{ARGUMENTS}::test_early_stopping_ends_at_the_first_chance_and_is_recorded",
        "early stopping under resume": "training/test_resume.py::test_early_stopping_resumes_its_count",
        "class weights and other losses": f"{ARGUMENTS}::test_a_former_name_is_told_what_became_of_it",
        "predict another column": f"{PREDICTING}::test_the_column_can_have_another_name",
        "predict to a file": f"{PREDICTING}::test_predictions_go_to_a_file",
        "predict a file with an empty row": f"{PREDICTING}::test_an_empty_row_keeps_its_place",
        "saving and evaluation steps": f"{ARGUMENTS}::test_a_key_without_effect_is_an_error",
        "several seeds or rates": f"{ARGUMENTS}::test_several_values_are_several_runs",
        "YAML nested too deep": "recipe/test_recipe.py::test_rejected_with_the_line_and_the_fix",
        "modes of saved files": "inference/test_merging.py::test_the_umask_decides_who_reads_the_files_of_a_run",
    },
    "language models": {
        "ShareGPT": f"{CHATS}::test_sharegpt_is_read_and_said",
        "chats as texts": f"{CHATS}::test_lists_are_no_texts",
        "Alpaca": f"{CHATS}::test_the_input_of_alpaca_is_part_of_the_prompt",
        "unused columns of content": f"{CHATS}::test_a_column_of_content_that_is_not_used_is_named",
        "weight 0": f"{TEMPLATES}::test_an_answer_of_weight_0_is_not_learned",
        "content in parts or null": f"{CHATS}::test_a_message_is_read",
        "other roles": f"{CHATS}::test_roles_are_read",
        "content of other types": f"{CHATS}::test_a_chat_that_cannot_be_learned_is_set_aside",
        "texts and folders of them": f"{TABLES}::test_a_text_file_is_a_row_a_line_and_a_folder_a_document_a_file",
        "preference data": f"{CHATS}::test_preference_data_says_what_can_be_learned",
        "a chat that starts with the assistant": f"{TEMPLATES}::test_of_a_chat_that_starts_with_the_assistant_no_header_is_learned",
        "several turns": f"{TEMPLATES}::test_the_words_and_the_end_mark_are_learned",
        "turns that the template rewrites": f"{TEMPLATES}::test_turns_that_are_rewritten_are_counted",
        "GLM's end of a turn": f"{TEMPLATES}::test_the_next_turn_s_opening_ends_an_answer_that_nothing_else_ends",
        "a chat that the template refuses": f"{TEMPLATES}::test_a_chat_that_the_template_refuses_is_set_aside_with_its_words",
        "a system message without a place": f"{TEMPLATES}::test_a_system_message_is_joined_to_the_user_s_where_the_template_has_none",
        "today's date": f"{LANGUAGE}::test_the_date_of_a_template_is_the_recipe_s",
        "another end mark": f"{LANGUAGE}::test_a_model_stops_at_the_end_mark_of_its_chats",
        "tokens added": "models/test_added_tokens.py::test_new_rows_are_learned_saved_and_merged",
        "options of LoRA": "recipe/test_adapters.py::test_options_as_peft_takes_them",
        "typos in options of LoRA": "recipe/test_adapters.py::test_an_initialization_that_cannot_be_is_refused",
        "PiSSA before training": "models/test_changed_base.py::test_before_training_is_the_checkpoint",
        "PiSSA beside another adapter": "models/test_changed_base.py::test_adapters_answer_the_same_beside_a_pissa_one_in_any_order",
        "a base that moved": "inference/test_bases.py::test_another_working_directory_finds_the_base",
        "a base that is named": "inference/test_bases.py::test_the_base_can_be_named",
        "an adapter as checkpoint": "inference/test_bases.py::test_an_adapter_goes_on",
        "completions cut off": f"{LANGUAGE}::test_rows_of_which_nothing_is_learned_are_counted",
    },
    "images": {
        "ids without suffix": f"{LABELS}::test_ids_without_a_suffix_get_that_of_their_file",
        "metadata.csv": f"{LABELS}::test_a_metadata_table_beside_the_images_is_read",
        "nested class folders": f"{LABELS}::test_nested_class_folders_are_said_and_their_level_can_be_chosen",
        "class folders of different depth": f"{LABELS}::test_class_folders_of_different_depth_are_refused",
    },
}


@cache
def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("section", CASES)
def test_every_case_has_its_test(section: str) -> None:
    for case, test in CASES[section].items():
        path, name = test.split("::")
        assert name in functions(path), f"{section}, {case}: {test} does not exist"


def test_no_case_is_lost() -> None:
    assert {section: len(cases) for section, cases in CASES.items()} == {
        "tables": 37,
        "recipes and flags": 18,
        "language models": 27,
        "images": 4,
    }
